"""A workspace, and a model with random weights that can write any byte and has some room."""

from pathlib import Path

import pytest

from yunque.workspace import Artifact, Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """An empty workspace."""
    return Workspace.open(tmp_path / "ws")


@pytest.fixture(scope="session")
def roomy_files() -> dict[str, bytes | Path]:
    """The files of a decoder of random weights over bytes, with a context of 1,536 tokens."""
    import torch

    from yunque.model import Llama, LlamaConfig, save_model
    from yunque.tokenizer import Tokenizer

    torch.set_num_threads(1)
    texts = [
        "You tell what the writer thinks. Answer with JSON. Dices qué opina quien escribe. <text> </text>"
    ]
    tokenizer = Tokenizer.train(texts * 3, vocab_size=320)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=1536,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.end_id,
        eos_token_id=tokenizer.end_id,
        pad_token_id=tokenizer.pad_id,
    )
    model = Llama(config, torch.Generator().manual_seed(0))
    return {**save_model(model), "tokenizer.json": tokenizer.to_json().encode()}


@pytest.fixture
def roomy(workspace: Workspace, roomy_files: dict[str, bytes | Path]) -> Artifact:
    """That model in the workspace."""
    return workspace.put("model", "roomy", roomy_files)
