"""A model family: its configuration, its model and its weight map; and the list of them all.

To add one: a file in `families/` that ends with a `Family`, a line in `_PLACES`, and a parity test.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from yunque.errors import UserError
from yunque.model.configuration import ModelConfig
from yunque.model.formats.files import Files
from yunque.model.language_model import LanguageModel
from yunque.model.weight_map import Entry

# For each `model_type` of a config.json: the file in `families/`, and the name of the family in it.
_PLACES: dict[str, tuple[str, str]] = {
    "llama": ("llama", "LLAMA"),
    "mistral": ("llama", "MISTRAL"),
    "qwen2": ("qwen", "QWEN2"),
    "qwen3": ("qwen", "QWEN3"),
    "gpt2": ("gpt2", "GPT2_FAMILY"),
    "falcon": ("falcon", "FALCON"),
    "bert": ("bert", "BERT"),
    "rnn": ("rnn", "RNN"),
    "rnn-seq2seq": ("rnn", "RNN_SEQ2SEQ"),
    "t5": ("t5", "T5_FAMILY"),
    "mt5": ("t5", "MT5_FAMILY"),
    "transformer": ("transformer", "TRANSFORMER"),
}


@dataclass(frozen=True)
class Family:
    """What there is to know about a family.

    `architecture` is what `config.json` calls the model. `prefix` begins the names of a checkpoint's tensors, and is
    left out, or put before them all, by some writers. `ignored` are patterns (regular expressions) of tensors that
    this model has no use for: they follow from the configuration, or are heads for other tasks. `copies` names
    tensors that repeat another one where embeddings are tied. `optional` are modules of ours, None in a model whose
    checkpoint lacks them. Where there is an `own_head`, that tensor decides whether embeddings are tied, whatever
    `tie_word_embeddings` says: they are not if it is stored, and is no copy. `old_endings`
    gives the endings that names had in older checkpoints. `beside` reads fields of the configuration that other
    files of the folder say.
    """

    architecture: str
    config: type[ModelConfig]
    model: type[LanguageModel]
    weight_map: Sequence[Entry]
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    own_head: str | None = None
    old_endings: Mapping[str, str] = field(default_factory=dict)
    beside: Callable[[Files], Mapping[str, Any]] | None = None


def known_model_types() -> tuple[str, ...]:
    """The `model_type` of every configuration that can be opened."""
    return tuple(_PLACES)


def family_of(config: ModelConfig | Mapping[str, Any]) -> Family:
    """The family of a configuration, read or raw; raises UserError where its `model_type` is not known."""
    model_type = config.model_type if isinstance(config, ModelConfig) else config.get("model_type")
    if not isinstance(model_type, str):
        raise UserError("model_type is missing: it says what kind of model this is")
    if model_type not in _PLACES:
        raise UserError(f"model_type {model_type[:80]!r} is not known (there are {', '.join(_PLACES)})")
    file, name = _PLACES[model_type]
    family = getattr(importlib.import_module(f"yunque.model.families.{file}"), name)
    assert isinstance(family, Family)
    return family


def new_model(config: ModelConfig, generator: torch.Generator | None = None) -> LanguageModel:
    """A model of this shape with fresh weights, drawn from `generator`."""
    return family_of(config).model(config, generator)
