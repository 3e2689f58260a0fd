"""`yunque models`: what is asked over a network, and when."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from fake_provider import Answer, FakeProvider
from typer.testing import CliRunner

from yunque.cli import models
from yunque.workspace import Workspace


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeProvider]:
    with FakeProvider() as started:
        started.answer = Answer(("uno", ", dos", ", tres", ", cuatro", ", cinco"), completion=5)
        monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{started.server_port}")
        # Nothing listens there.
        monkeypatch.setenv("VLLM_BASE_URL", "http://127.0.0.1:9/v1")
        monkeypatch.setenv("LLAMACPP_BASE_URL", "http://127.0.0.1:9/v1")
        for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("YUNQUE_WORKSPACE", str(tmp_path / "w"))
        yield started


def run(*arguments: str) -> dict[str, Any]:
    app = typer.Typer()
    app.command("models")(models.models)
    told = CliRunner().invoke(app, [*arguments, "--json"])
    assert told.exit_code == 0, told.output
    result: dict[str, Any] = json.loads(told.stdout)
    return result


def names(result: dict[str, Any]) -> list[str]:
    return [each["model"] for each in result["models"]]


def test_nothing_is_asked_unless_told(provider: FakeProvider, put_tiny_model: Callable[..., object]) -> None:
    put_tiny_model(Workspace.open())
    result = run("ollama/fake-small")
    assert names(result) == ["model/mini@1", "ollama/fake-small"]
    assert provider.connections == 0
    assert result["models"][0]["privacy"]["what"] == "stays on this machine"


def test_a_server_of_your_own_tells_what_it_has(provider: FakeProvider) -> None:
    assert set(names(run("--ask"))) == {f"ollama/{name}" for name in provider.models}
    assert provider.connections > 0 and provider.asked == []


def test_measuring_asks_what_is_named_and_the_list_shows_it(
    provider: FakeProvider, put_tiny_model: Callable[..., object]
) -> None:
    put_tiny_model(Workspace.open())
    result = run("ollama/fake-small", "mini", "ollama/fake-large", "--measure", "--by", "latency")
    speeds = {each["model"]: each["speed"] for each in result["models"]}
    assert all(speed["first_token"] > 0 and speed["answers"] == 2 for speed in speeds.values())
    assert [each["ranks"]["latency"] for each in result["models"]] == [1, 2, 3]
    assert {asked.model for asked in provider.asked} == {"fake-small", "fake-large"}


@pytest.mark.usefixtures("provider")
def test_a_model_that_cannot_be_measured_is_told_and_the_others_are() -> None:
    result = run("ollama/fake-small", "http://127.0.0.1:9/v1#gone", "--measure")
    speeds = {each["model"]: each["speed"] for each in result["models"]}
    assert speeds["ollama/fake-small"] and speeds["http://127.0.0.1:9/v1#gone"] is None
