"""The vocabulary file of llama2.c (`tok512.bin`): a SentencePiece BPE model with little around it."""

import struct

from yunque.errors import UserError
from yunque.tokenizer.alphabet import BLANK
from yunque.tokenizer.pieces import Piece, PieceType, tokenizer_from_pieces
from yunque.tokenizer.tokenizer import Tokenizer

_LONGEST_PIECE = 4096
_UNKNOWN, _BEGIN, _END = 0, 1, 2


def read_llama2c(data: bytes) -> Tokenizer:
    """The tokenizer of a llama2.c vocabulary; raises UserError for bytes that are none.

    Layout, little-endian: int32 length of the longest token, then for each token float32 score, int32 length, bytes.
    Ids 0, 1 and 2 are unknown, begin and end; 3 to 258 are the bytes; the names of begin and end stand between line
    ends, and a space is a space.
    """
    pieces: list[Piece] = []
    if len(data) < 4:
        raise UserError("is not a llama2.c vocabulary: it is shorter than its header")
    (longest,) = struct.unpack_from("<i", data)
    if not 0 < longest <= _LONGEST_PIECE:
        raise UserError(f"is not a llama2.c vocabulary: its longest token would have {longest} bytes")
    position = 4
    while position < len(data):
        if position + 8 > len(data):
            raise UserError(f"is cut off in the header of token {len(pieces)}")
        score, length = struct.unpack_from("<fi", data, position)
        position += 8
        if not 0 <= length <= longest or position + length > len(data):
            raise UserError(
                f"token {len(pieces)} has {length} bytes, but the longest {longest}, or is cut off"
            )
        try:
            name = data[position : position + length].decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"token {len(pieces)} is not UTF-8 text") from None
        position += length
        pieces.append(_piece(name, score, len(pieces)))
    if len(pieces) < 259:
        raise UserError(f"has {len(pieces)} tokens: the bytes and the special tokens alone are 259")
    return tokenizer_from_pieces(pieces, "bpe", bos_id=_BEGIN, eos_id=_END, add_bos=True)


def _piece(name: str, score: float, number: int) -> Piece:
    if number == _UNKNOWN:
        return name, 0.0, PieceType.UNKNOWN
    if number in (_BEGIN, _END):
        return name.strip(), 0.0, PieceType.CONTROL
    if number < 259:
        return name, 0.0, PieceType.BYTE
    return name.replace(" ", BLANK), score, PieceType.NORMAL
