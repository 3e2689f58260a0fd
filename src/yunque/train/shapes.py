"""The shape of a model to make: a few settings and a tokenizer become the configuration of a family.

Decoder-only Transformers draw their initial weights wider than their families do (see `_decoder_fields`); the other
families draw theirs as they always do.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError, model_validator

from yunque.configuration import Settings
from yunque.errors import UserError
from yunque.model import ModelConfig, family_of, new_model, plan_model, save_model
from yunque.model.checkpoint import check_memory
from yunque.tokenizer import Tokenizer, tokenizer_of
from yunque.workspace import Artifact, Workspace

FamilyName = Literal[
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gpt2",
    "falcon",
    "rnn",
    "t5",
    "transformer",
    "rnn-seq2seq",
]
_LLAMAS = ("llama", "mistral", "qwen2", "qwen3")
_WITH_HEADS = (*_LLAMAS, "gpt2", "falcon", "t5", "transformer")
# The settings that not every family has, and which have them.
_APPLIES: Mapping[str, tuple[str, ...]] = {
    "intermediate_size": _WITH_HEADS,
    "heads": _WITH_HEADS,
    "key_value_heads": (*_LLAMAS, "falcon"),
    "window": ("mistral",),
    "dropout": ("transformer",),
    "cell": ("rnn", "rnn-seq2seq"),
    "attention": ("rnn-seq2seq",),
}
_GATED = (*_LLAMAS, "t5")
_ROTARY = (*_LLAMAS, "falcon")


class ModelSettings(Settings):
    """The shape of a model to make; of an encoder-decoder both stacks have `layers`.

    `context` is the longest text of training. What is None is as the family has it: four `heads`; two
    `key_value_heads` (Falcon: one); an `intermediate_size` of the feed-forward layers of 8/3 of `hidden_size` behind
    a gate and four times it elsewhere, up to a multiple of 16; no `window` (how far back Mistral looks); a `dropout`
    of 0.1; LSTM as `cell`; `attention` to the source. A setting that its family has not is refused.
    """

    family: FamilyName = "llama"
    hidden_size: int = Field(default=256, ge=1)
    intermediate_size: int | None = Field(default=None, ge=1)
    layers: int = Field(default=2, ge=1)
    heads: int | None = Field(default=None, ge=1)
    key_value_heads: int | None = Field(default=None, ge=1)
    context: int = Field(default=512, ge=2)
    window: int | None = Field(default=None, ge=1)
    dropout: float | None = Field(default=None, ge=0, lt=1)
    cell: Literal["lstm", "gru"] | None = None
    attention: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> "ModelSettings":
        for setting, families in _APPLIES.items():
            if getattr(self, setting) is not None and self.family not in families:
                raise ValueError(
                    f"{setting} is not for {self.family}, only for {', '.join(families)}: leave it out"
                )
        if self.family in _WITH_HEADS:
            pairs = self.family in _ROTARY
            if self.hidden_size % (self.num_heads * (2 if pairs else 1)):
                raise ValueError(f"hidden_size must be a multiple of {'twice ' if pairs else ''}heads")
            if self.num_heads % self.num_key_value_heads:
                raise ValueError("heads must be a multiple of key_value_heads")
        return self

    @property
    def num_heads(self) -> int:
        """How many query heads a layer has."""
        return self.heads or 4

    @property
    def num_key_value_heads(self) -> int:
        """How many key-value heads a layer has."""
        if self.family not in _APPLIES["key_value_heads"]:
            return self.num_heads
        usual = 1 if self.family == "falcon" else 2 if self.num_heads % 2 == 0 else self.num_heads
        return self.key_value_heads or usual

    @property
    def feed_forward_size(self) -> int:
        """How wide the feed-forward layers are."""
        if self.intermediate_size is not None:
            return self.intermediate_size
        wide = self.hidden_size * 8 / 3 if self.family in _GATED else self.hidden_size * 4
        return -(-int(wide) // 16) * 16

    @property
    def reads_a_source(self) -> bool:
        """Whether it is an encoder-decoder."""
        return self.family in ("t5", "transformer", "rnn-seq2seq")

    def configuration(self, tokenizer: Tokenizer) -> ModelConfig:
        """The model's config.json, for this vocabulary. Raises UserError for a shape that cannot be."""
        fields = {
            "model_type": self.family,
            "vocab_size": tokenizer.vocab_size,
            "bos_token_id": tokenizer.end_id,
            "eos_token_id": tokenizer.end_id,
            "pad_token_id": tokenizer.pad_id,
            **_FIELDS[self.family](self),
        }
        if self.reads_a_source:
            fields["decoder_start_token_id"] = tokenizer.pad_id
        try:
            return family_of(fields).config.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the shape"
            raise UserError(f"model: no {self.family} can be made so ({place}: {first['msg']})") from None


def _decoder_fields(settings: ModelSettings) -> dict[str, Any]:
    return {
        "hidden_size": settings.hidden_size,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.num_heads,
        "intermediate_size": settings.feed_forward_size,
        "max_position_embeddings": settings.context,
        # Measured (docs/notebook.md): at this size 1/sqrt(hidden_size) learns far quicker than GPT-2's 0.02.
        "initializer_range": settings.hidden_size**-0.5,
        "tie_word_embeddings": True,
    }


def _llama_fields(settings: ModelSettings) -> dict[str, Any]:
    return {
        **_decoder_fields(settings),
        "num_key_value_heads": settings.num_key_value_heads,
        "head_dim": settings.hidden_size // settings.num_heads,
        "rms_norm_eps": 1e-5,
    }


def _mistral_fields(settings: ModelSettings) -> dict[str, Any]:
    return {**_llama_fields(settings), "sliding_window": settings.window}


def _falcon_fields(settings: ModelSettings) -> dict[str, Any]:
    # One key-value head is Falcon 7B's shape, several are that of the 40B.
    several = settings.num_key_value_heads > 1
    return {
        **_decoder_fields(settings),
        "new_decoder_architecture": several,
        "num_kv_heads": settings.num_key_value_heads if several else None,
        "multi_query": True,
        "alibi": False,
    }


def _recurrent_fields(settings: ModelSettings) -> dict[str, Any]:
    return {
        "hidden_size": settings.hidden_size,
        "num_hidden_layers": settings.layers,
        "cell": settings.cell or "lstm",
    }


def _recurrent_seq2seq_fields(settings: ModelSettings) -> dict[str, Any]:
    return {**_recurrent_fields(settings), "attention": settings.attention is not False}


def _t5_fields(settings: ModelSettings) -> dict[str, Any]:
    return {
        "d_model": settings.hidden_size,
        "d_kv": settings.hidden_size // settings.num_heads,
        "d_ff": settings.feed_forward_size,
        "num_layers": settings.layers,
        "num_decoder_layers": settings.layers,
        "num_heads": settings.num_heads,
        # T5 v1.1: a gate, and a matrix of its own for the scores.
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    }


def _transformer_fields(settings: ModelSettings) -> dict[str, Any]:
    return {
        "hidden_size": settings.hidden_size,
        "intermediate_size": settings.feed_forward_size,
        "num_encoder_layers": settings.layers,
        "num_decoder_layers": settings.layers,
        "num_attention_heads": settings.num_heads,
        "max_position_embeddings": settings.context,
        "dropout": 0.1 if settings.dropout is None else settings.dropout,
    }


_FIELDS: Mapping[FamilyName, Callable[[ModelSettings], dict[str, Any]]] = {
    "llama": _llama_fields,
    "mistral": _mistral_fields,
    "qwen2": _llama_fields,
    "qwen3": _llama_fields,
    "gpt2": _decoder_fields,
    "falcon": _falcon_fields,
    "rnn": _recurrent_fields,
    "t5": _t5_fields,
    "transformer": _transformer_fields,
    "rnn-seq2seq": _recurrent_seq2seq_fields,
}


class NewModelSettings(Settings):
    """Settings of `yunque model new`; without `tokenizer` it is the only one in the workspace."""

    name: str = "new"
    tokenizer: str | None = None
    model: ModelSettings = ModelSettings()
    seed: int = Field(default=0, ge=0)


def make_model(workspace: Workspace, settings: NewModelSettings) -> Artifact:
    """Keep a model with fresh weights, for `tune` to train on rows; the same settings give the same weights.

    Raises UserError where there is no such tokenizer, and for a shape that cannot be.
    """
    chosen = find_tokenizer(workspace, settings.tokenizer)
    tokenizer = tokenizer_of(workspace, chosen)
    config = settings.model.configuration(tokenizer)
    plan = plan_model(config)
    check_memory(f"model/{settings.name}", plan.weight_bytes)
    model = new_model(config, torch.Generator().manual_seed(settings.seed))
    return workspace.put(
        "model",
        settings.name,
        {**save_model(model), **tokenizer.to_files()},
        [chosen],
        config={"objective": None, **settings.model_dump(mode="json"), "tokenizer": chosen.ref},
        figures={"parameters": plan.parameters, "context": config.context},
    )


def find_tokenizer(workspace: Workspace, ref: str | None) -> Artifact:
    """The tokenizer of this name, or the only one there is. Raises UserError."""
    if ref is not None:
        return workspace.get(ref, "tokenizer")
    known = workspace.list("tokenizer")
    if not known:
        raise UserError(
            "there is no tokenizer yet: make one with `yunque tokenizer train --data DATASET --name NAME`"
        )
    if len(known) > 1:
        names = ", ".join(artifact.ref for artifact in known)
        raise UserError(f"there are several tokenizers: choose one with --tokenizer ({names})")
    return known[0]
