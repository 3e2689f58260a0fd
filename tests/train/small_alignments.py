"""A tiny random model that writes, pairs of answers for it, and settings that train it in a second."""

import json
from pathlib import Path

import torch

from yunque.data.preferences import PreferenceRow, write_preferences
from yunque.model import Llama, LlamaConfig, save_model
from yunque.tokenizer import Tokenizer
from yunque.workspace import Artifact, Workspace

TEXTS = [
    "¿Qué hora es? Son las nueve.",
    "What time is it? It is nine.",
    "Con mucho gusto. No lo sé. Gladly. No idea.",
]
GOLDEN = Path(__file__).parent


def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS * 3, vocab_size=280)


def config(tokens: Tokenizer, **changes) -> LlamaConfig:
    shape = {
        "vocab_size": tokens.vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "initializer_range": 0.1,
        "eos_token_id": tokens.end_id,
        "pad_token_id": tokens.pad_id,
    }
    return LlamaConfig(**{**shape, **changes})


def model(seed: int = 0, **changes) -> Llama:
    torch.set_num_threads(1)
    return Llama(config(tokenizer(), **changes), torch.Generator().manual_seed(seed))


def row(number: int) -> PreferenceRow:
    english = number % 2
    prompt = (f"¿Qué hora es, {number}?", f"What time is it, {number}?")[english]
    return PreferenceRow(
        f"r{number}",
        (("user", prompt),),
        ("Son las nueve, con mucho gusto.", "It is nine, gladly.")[english],
        ("No lo sé.", "No idea.")[english],
    )


ROWS = [row(number) for number in range(20)]


def put_base(workspace: Workspace) -> Artifact:
    tokens = tokenizer()
    files = {**save_model(model()), **tokens.to_files()}
    return workspace.put("model", "tiny", files)


def put_data(workspace: Workspace) -> Artifact:
    return write_preferences(workspace, "pairs", {"train": ROWS})


def log(workspace: Workspace, made: Artifact) -> list[dict]:
    return [json.loads(line) for line in workspace.file(made, "loss.jsonl").read_text().splitlines()]


def share_of_vowels(prompt: str, answer: str) -> float:
    """A reward that tests can look up by name: the share of letters that are vowels."""
    del prompt
    return sum(letter in "aeiou" for letter in answer) / max(1, len(answer))
