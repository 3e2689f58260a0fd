"""A model that was closed for another is really gone, also after answers that broke off."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from yunque.generate.config import GenerationConfig
from yunque.server.served import Served, Settings
from yunque.server.served_model import ServedModel
from yunque.server.service import ServeOptions
from yunque.workspace import Artifact, Workspace

SETTINGS = Settings(GenerationConfig(max_new_tokens=20), length_asked=True)


@pytest.mark.parametrize("broken_off", [False, True])
def test_nothing_keeps_a_closed_model_alive(
    workspace: Workspace, put_tiny_model: Callable[..., Artifact], broken_off: bool
) -> None:
    put_tiny_model(workspace)
    served = Served(workspace)
    with served.use("mini") as target:
        assert isinstance(target, ServedModel) and target.local
        weights = weakref.ref(next(target.local.engine.model.parameters()))
        pieces = target.complete("Cada pasajero", SETTINGS)
        next(pieces)
        if broken_off:
            pieces.close()  # type: ignore[attr-defined]
        else:
            list(pieces)
    del target, pieces
    gc.collect()
    assert weights() is not None  # it is open for the next
    assert served.loading.drop("model/mini@1")
    gc.collect()
    assert weights() is None


def test_models_take_turns_in_little_memory(
    workspace: Workspace, put_tiny_model: Callable[..., Artifact], start: Callable[..., Any]
) -> None:
    put_tiny_model(workspace, "one")
    put_tiny_model(workspace, "two")
    running = start(workspace, options=ServeOptions(memory=300_000))
    texts = []
    for name in ("one", "two", "one"):
        body = {"model": name, "prompt": "Cada pasajero", "max_tokens": 8, "temperature": 0}
        texts.append(httpx.post(f"{running.url}/completions", json=body, timeout=20).json()["choices"])
        figures = httpx.get(running.root + "/metrics").text
        assert "yunque_models_loaded 1.0" in figures and f'model="model/{name}@1"' in figures
        assert f'yunque_engine_prompt_tokens{{model="model/{name}@1"}}' in figures
    assert texts[0] == texts[1] == texts[2]
