"""A model family: its configuration, its model and its weight map; and the list of them all.

To add one: a file in `families/` that ends with a `Family`, a line in `_PLACES`, and a parity test; docs/families.md
walks through it.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from yunque.errors import UserError
from yunque.model.configuration import ModelConfig
from yunque.model.formats.files import Files
from yunque.model.language_model import LanguageModel
from yunque.model.weight_map import Entry

# For each `model_type` of a config.json: the file in `families/`, and the name of the family in it.
_PLACES: dict[str, tuple[str, str]] = {
    "llama": ("llama", "LLAMA_FAMILY"),
    "mistral": ("llama", "MISTRAL_FAMILY"),
    "qwen2": ("qwen", "QWEN2_FAMILY"),
    "qwen3": ("qwen", "QWEN3_FAMILY"),
    "gpt2": ("gpt2", "GPT2_FAMILY"),
    "falcon": ("falcon", "FALCON_FAMILY"),
    "bert": ("bert", "BERT_FAMILY"),
    "rnn": ("rnn", "RNN_FAMILY"),
    "rnn-seq2seq": ("rnn", "RNN_SEQ2SEQ_FAMILY"),
    "t5": ("t5", "T5_FAMILY"),
    "mt5": ("t5", "MT5_FAMILY"),
    "transformer": ("transformer", "TRANSFORMER_FAMILY"),
}


class ModelClass(Protocol):
    """A family's own class: it is made of the family's configuration, with weights drawn from `generator`."""

    def __call__(self, config: Any, generator: torch.Generator | None = None) -> LanguageModel:
        """A model with fresh weights."""
        ...


@dataclass(frozen=True)
class Family:
    """What there is to know about a family; only the first four differ in every one."""

    # What `config.json` calls the model, in `architectures`.
    architecture: str
    # The shape of one, read from `config.json`.
    config: type[ModelConfig]
    # What is made of that shape.
    model: ModelClass
    # Which tensors of a checkpoint are which of ours.
    weight_map: Sequence[Entry]
    # What begins the names of a checkpoint's tensors; some writers leave it out, or put it before them all.
    prefix: str = ""
    # Patterns (regular expressions) of tensors without use here: they follow from the configuration, or are heads for
    # other tasks.
    ignored: tuple[str, ...] = ()
    # Where embeddings are tied: tensors that repeat another one, and which.
    copies: Mapping[str, str] = field(default_factory=dict)
    # Modules of ours that are None in a model whose checkpoint lacks them.
    optional: tuple[str, ...] = ()
    # A tensor that decides whether embeddings are tied, whatever `tie_word_embeddings` says: they are not if it is
    # stored, and is no copy.
    own_head: str | None = None
    # The endings that names had in older checkpoints, by the newer ones.
    old_endings: Mapping[str, str] = field(default_factory=dict)
    # Reads fields of the configuration that other files of the folder say.
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
