"""A tiny model of every family, with random weights that let every part of it show."""

from typing import Any

import torch
from torch import Tensor

from yunque.model import CausalModel, EncoderDecoder, LanguageModel, new_model
from yunque.model.checkpoint import parse_configuration

VOCAB_SIZE = 60

_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
_FIELDS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA | {"sliding_window": 6},
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
    "bert": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    "rnn": {"hidden_size": 32, "num_hidden_layers": 2, "tie_word_embeddings": False},
    "rnn-seq2seq": {"hidden_size": 32, "num_hidden_layers": 2},
    "t5": _T5,
    "mt5": _T5,
    "transformer": {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "dropout": 0.0}
    | {"num_encoder_layers": 2, "num_decoder_layers": 2},
}
MODEL_TYPES = tuple(_FIELDS)


def tiny_model(model_type: str, **changes: Any) -> LanguageModel:
    """A model of this family, ready for use."""
    fields = {"model_type": model_type, "vocab_size": VOCAB_SIZE, **_FIELDS[model_type], **changes}
    model = new_model(parse_configuration(fields, model_type))
    with torch.no_grad():
        for weight in model.parameters():
            generator = torch.Generator().manual_seed(weight.numel())
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(noise * 0.2 if weight.dim() > 1 else 1 + 0.1 * noise)
    return model.eval().requires_grad_(False)


def ids(rows: int = 3, length: int = 7, seed: int = 1) -> Tensor:
    """Random tokens."""
    return torch.randint(3, VOCAB_SIZE, (rows, length), generator=torch.Generator().manual_seed(seed))


def output(model: LanguageModel, input_ids_BT: Tensor) -> Tensor:
    """What a model makes of these tokens: scores, or an encoder's vectors. A target is the source's beginning."""
    if isinstance(model, EncoderDecoder):
        return model(input_ids_BT, input_ids_BT[:, :5])
    if isinstance(model, CausalModel):
        return model(input_ids_BT)
    return model.hidden(input_ids_BT)
