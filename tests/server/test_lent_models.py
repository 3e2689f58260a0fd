"""An app's model is the one that everybody uses: opened once, under the same limit of memory."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from yunque.apps.kept import add_app
from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.llm import Message, ModelUnavailable
from yunque.llm.local import LocalModel
from yunque.server.account import Account, answering
from yunque.server.errors import ApiError
from yunque.server.served import Served
from yunque.workspace import Artifact, Workspace

APP = {
    "name": "writer",
    "languages": ["es"],
    "model": "mini",
    "prompt": {"user": {"es": "{{ question }}"}},
    "generation": {"max_new_tokens": 4},
    "guards": [{"check": "personal_data", "stages": ["input"]}],
}
QUESTION: Any = [{"role": "user", "content": "¿Qué tal?"}]


@pytest.fixture
def with_app(tmp_path: Path, workspace: Workspace, put_tiny_model: Callable[..., Artifact]) -> Workspace:
    put_tiny_model(workspace)
    file = tmp_path / "writer.yaml"
    file.write_text(yaml.safe_dump(APP, allow_unicode=True))
    add_app(workspace, file)
    return workspace


def test_an_app_and_its_model_are_opened_once_for_all(
    with_app: Workspace, start: Callable[..., Any], opened_models: list[str]
) -> None:
    running = start(with_app)
    client = running.client()
    for name in ("app/writer", "mini", "app/writer", "mini"):
        answer = client.chat.completions.create(model=name, messages=QUESTION, max_tokens=4)
        assert 1 <= answer.usage.completion_tokens <= 4
    assert opened_models == ["model/mini@1"]
    figures = httpx.get(running.root + "/metrics").text
    assert 'yunque_model_bytes{model="app/writer@1"} 0.0' in figures
    assert "yunque_models_loaded 2.0" in figures


def test_the_answer_of_a_lent_model_is_the_models_own_and_ends_when_nobody_waits(with_app: Workspace) -> None:
    served = Served(with_app)
    lent, config = served._lent("mini"), GenerationConfig(max_new_tokens=6)
    own = LocalModel.open(with_app, "mini")
    asked = [Message("user", "¿Qué tal?")]
    assert lent.chat(asked, config) == own.chat(asked, config)
    assert lent.complete("Cada", config) == own.complete("Cada", config)
    account = Account()
    with answering(account):
        pieces = lent.stream_complete("Cada", config)
        next(pieces)
        account.gone = True
        with pytest.raises(ApiError, match="went away"):
            next(pieces)
    assert served.loading.drop("model/mini@1")  # nobody holds it any more


def test_a_lent_model_is_asked_whether_it_is_wanted_and_ends_when_it_is_closed(
    with_app: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Served(with_app)
    lent, config = served._lent("mini"), GenerationConfig(max_new_tokens=60, ignore_end=True)
    with served._model("model/mini@1") as own:
        assert isinstance(own, LocalModel)
        runner, _ = own.engine._ready()
        run = runner.run

        def slowly(works: Any) -> Any:
            time.sleep(0.01)  # so small a model would be through before it is looked at
            return run(works)

        monkeypatch.setattr(runner, "run", slowly)
        for ask in (lent.stream_complete, lambda *more: lent.stream_chat([Message("user", "¿?")], more[1])):
            for leave in ("close", "gone"):
                account = Account()
                with answering(account):
                    pieces = ask("Cada", config)
                    next(pieces)
                    assert own.engine.load.running == 1
                    if leave == "close":
                        pieces.close()  # type: ignore[attr-defined]
                    else:
                        account.gone = True  # nobody takes another piece: the engine itself asks
                    deadline = time.monotonic() + 5
                    while own.engine.load.running and time.monotonic() < deadline:
                        time.sleep(0.005)
                    assert own.engine.load.running == 0
                    assert leave == "close" or len(list(_taken(pieces))) < 59


def _taken(pieces: Any) -> Any:
    with pytest.raises(ApiError, match="went away"):
        yield from pieces


def test_a_model_that_is_not_there_or_elsewhere_is_told(with_app: Workspace) -> None:
    served = Served(with_app)
    with pytest.raises(UserError, match="nothing"):
        served._lent("nothing")
    with pytest.raises(UserError, match="writes no text"):
        served._lent("app/writer").complete("a", GenerationConfig())
    away = served._lent("http://127.0.0.1:9/v1#x")
    with pytest.raises(ModelUnavailable):
        away.complete("a", GenerationConfig())
