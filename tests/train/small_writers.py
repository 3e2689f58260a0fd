"""A tiny random model of every family that writes, in a workspace with a tokenizer of ours."""

import torch

from yunque.data.instructions import InstructionRow
from yunque.model import EncoderDecoder, LanguageModel, new_model, save_model
from yunque.model.checkpoint import parse_configuration
from yunque.tokenizer import Tokenizer
from yunque.train import TuneSettings
from yunque.workspace import Artifact, Workspace

_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
}
_T5 = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_heads": 2}
FAMILIES = {
    "llama": _LLAMA,
    "mistral": _LLAMA | {"sliding_window": 16},
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gpt2": {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64, "initializer_range": 0.1},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "initializer_range": 0.1},
    "rnn": {"hidden_size": 32, "num_hidden_layers": 1},
    "t5": _T5,
    "mt5": _T5,
    "transformer": {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "dropout": 0.1}
    | {"num_encoder_layers": 1, "num_decoder_layers": 1},
    "rnn-seq2seq": {"hidden_size": 32, "num_hidden_layers": 1},
}
READ_A_SOURCE = ("t5", "mt5", "transformer", "rnn-seq2seq")


def row(number: int) -> InstructionRow:
    good = number % 2 == 0
    answer = "sí" if good else "no"
    text = f"El {('perro', 'gato')[number // 2 % 2]} es {'bueno' if good else 'malo'}."
    return InstructionRow(f"r{number}", "sentiment", "es", "t1", "¿Es bueno?", text, answer, ("sí", "no"))


ROWS = [row(number) for number in range(4)]


def tokenizer() -> Tokenizer:
    return Tokenizer.train([f"{each.question} {each.answer}" for each in ROWS] * 3, 300)


def writer(family: str, tokens: Tokenizer, **changes) -> LanguageModel:
    torch.set_num_threads(1)
    fields = {
        "model_type": family,
        "vocab_size": tokens.vocab_size,
        "eos_token_id": tokens.end_id,
        "pad_token_id": tokens.pad_id,
        **FAMILIES[family],
        **changes,
    }
    model = new_model(parse_configuration(fields, family), torch.Generator().manual_seed(0))
    assert isinstance(model, EncoderDecoder) == (family in READ_A_SOURCE)
    return model


def put_writer(workspace: Workspace, family: str, **changes) -> Artifact:
    tokens = tokenizer()
    return workspace.put(
        "model", family, {**save_model(writer(family, tokens, **changes)), **tokens.to_files()}
    )


def settings_of(**changes) -> TuneSettings:
    values = {"precision": "float32", "batch_size": 4, "epochs": 40, "replay": 0, "checkpoint_every": 10}
    return TuneSettings.model_validate({**values, "optimizer": {"learning_rate": 1e-2}, **changes})
