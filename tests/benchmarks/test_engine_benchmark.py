"""The benchmark of the engine's step runs; how fast it finds anything to be is not for a test."""

import argparse
import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from yunque.native import native_library

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("engine")


class Gate:
    """A gate that is open for some steps."""

    def __init__(self, over: type[Exception], steps: int) -> None:
        self._over, self._left = over, steps

    def tick(self) -> None:
        self._left -= 1
        if not self._left:
            raise self._over


@pytest.mark.parametrize("name", ["int8", "float32", "transformers"])
@pytest.mark.parametrize("task", ["decode-1", "decode-16", "prefill"])
def test_an_engine_does_its_task_until_its_turns_are_over(engine: ModuleType, name: str, task: str) -> None:
    if name == "transformers":
        pytest.importorskip("transformers")
    elif native_library() is None:
        pytest.skip("there is no compiler")
    given = argparse.Namespace(worker=name, tasks=task, quick=True, threads=1)
    over = importlib.import_module("turns").Over
    # It switches gradients off for its own process.
    with torch.no_grad(), pytest.raises(over):
        # More steps than fit behind the prompts: they begin anew.
        engine.work(Gate(over, 70 if task == "decode-1" else 2), given)


def test_the_model_that_llama_cpp_opens_has_every_tensor(engine: ModuleType, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    engine.write_gguf(tmp_path / "tiny.gguf", engine.QUICK)
    tensors = {one.name: list(one.shape) for one in gguf.GGUFReader(tmp_path / "tiny.gguf").tensors}
    assert len(tensors) == 2 + 9 * engine.QUICK["num_hidden_layers"]
    assert tensors["token_embd.weight"] == [64, 320] and tensors["blk.1.ffn_down.weight"] == [96, 64]
