"""A workspace with a small split dataset and a tokenizer, and settings for a model that trains in a second."""

import pytest
import torch

from yunque.data.dataset import write_dataset
from yunque.data.row import Row, Source, row_id
from yunque.tokenizer import train_tokenizer
from yunque.train import PretrainSettings
from yunque.workspace import Workspace

ANIMALS = ("perro", "gato", "dog", "cat", "loro", "parrot", "pez", "fish")
PLACES = ("la casa", "the garden", "el avión", "the sea")


def row(number: int) -> Row:
    animal, place = ANIMALS[number % 8], PLACES[number // 8 % 4]
    text = f"Row {number}: {animal} / {place}. " + f"El {animal} va a {place} y vuelve. " * (1 + number % 5)
    return Row(row_id("a.md", text), text, "und", Source("a.md", "0" * 64, f"line {number}"), "a.md")


def fill(workspace: Workspace) -> Workspace:
    splits = {
        "train": [row(n) for n in range(64)],
        "validation": [row(n) for n in range(64, 80)],
        "test": [row(n) for n in range(80, 96)],
    }
    write_dataset(workspace, "animals", splits, card={}, parents=[], config={})
    train_tokenizer(workspace, "bpe", ["animals"], 300)
    return workspace


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return fill(Workspace.open(tmp_path / "ws"))


@pytest.fixture
def settings() -> PretrainSettings:
    return PretrainSettings.model_validate(
        {
            "name": "tiny",
            "steps": 20,
            "batch_size": 4,
            "precision": "float32",
            "checkpoint_every": 6,
            "validate_every": 10,
            "model": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "layers": 2,
                "heads": 2,
                "key_value_heads": 1,
                "context": 32,
            },
        }
    )


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    # Tests run in parallel: threads of several processes would wait for one another most of the time.
    torch.set_num_threads(1)
