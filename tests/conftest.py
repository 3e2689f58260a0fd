"""What tests of several floors need: a tiny model with random weights."""

import os
from collections.abc import Callable, Mapping

import pytest

from yunque.workspace import Artifact, Workspace

# The workers of a parallel run share the cores; see `yunque.cli.main.run`.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# ... and what they train is so small that a second thread is only waited for.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_TEXTS = [
    "Cada pasajero puede llevar una maleta de 23 kg y un bolso de mano.",
    "Each passenger may take one suitcase of 23 kg and one handbag.",
    "¿Qué opina el texto? Es positivo. No es negativo.",
]


@pytest.fixture(scope="session")
def tiny_model_files() -> Mapping[str, bytes]:
    """The files of a decoder of some 30 000 random weights, with a context of 128 tokens."""
    import torch

    from yunque.model import Llama, LlamaConfig, save_model
    from yunque.tokenizer import Tokenizer

    # Several threads on so small a model only wait for one another.
    torch.set_num_threads(1)
    tokenizer = Tokenizer.train(_TEXTS * 3, vocab_size=300)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.end_id,
        eos_token_id=tokenizer.end_id,
        pad_token_id=tokenizer.pad_id,
    )
    model = Llama(config, torch.Generator().manual_seed(0))
    return {**save_model(model), "tokenizer.json": tokenizer.to_json().encode()}


@pytest.fixture
def put_tiny_model(tiny_model_files: Mapping[str, bytes]) -> Callable[..., Artifact]:
    """Puts that model into a workspace under a name."""

    def put(workspace: Workspace, name: str = "mini", parents: tuple[Artifact, ...] = ()) -> Artifact:
        return workspace.put("model", name, tiny_model_files, parents)

    return put
