"""Text to ids and back: our own byte-level BPE, and the tokenizers that other models came with."""

from yunque.tokenizer.artifact import import_tokenizer, open_tokenizer, tokenizer_of
from yunque.tokenizer.cost import Cost, costs, sample_texts
from yunque.tokenizer.merges import PATTERNS, tokenizer_from_merges, tokenizer_from_ranks
from yunque.tokenizer.pieces import PieceType, tokenizer_from_pieces
from yunque.tokenizer.read import read_tokenizer
from yunque.tokenizer.tokenizer import SPECIAL_TOKENS, Tokenizer
from yunque.tokenizer.training import train_tokenizer

__all__ = [
    "PATTERNS",
    "SPECIAL_TOKENS",
    "Cost",
    "PieceType",
    "Tokenizer",
    "costs",
    "import_tokenizer",
    "open_tokenizer",
    "read_tokenizer",
    "sample_texts",
    "tokenizer_from_merges",
    "tokenizer_from_pieces",
    "tokenizer_from_ranks",
    "tokenizer_of",
    "train_tokenizer",
]
