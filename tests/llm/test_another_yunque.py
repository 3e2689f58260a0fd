"""Yunque's own server, asked by Yunque's own client: both sides of one API."""

import threading
import time
from collections.abc import Iterator

import pytest

from yunque.errors import UserError
from yunque.generate.config import (
    ChoiceFormat,
    GenerationConfig,
    JsonFormat,
    RegexFormat,
)
from yunque.llm import ContextOverflow, Message, ModelUnavailable
from yunque.llm.local import LocalModel
from yunque.llm.open import open_remote
from yunque.llm.remote import RemoteModel
from yunque.server.run import bound_socket, make_server, url_of
from yunque.workspace import Workspace

QUESTION = [Message("system", "Sé breve."), Message("user", "¿Cuántas maletas?")]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, tiny_model_files: dict[str, bytes]) -> LocalModel:
    workspace = Workspace.open(tmp_path_factory.mktemp("other") / "ws")
    workspace.put("model", "mini", tiny_model_files)
    return LocalModel.open(workspace, "mini")


@pytest.fixture(scope="module")
def remote(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_files: dict[str, bytes]
) -> Iterator[RemoteModel]:
    workspace = Workspace.open(tmp_path_factory.mktemp("served") / "ws")
    workspace.put("model", "mini", tiny_model_files)
    server, bound = make_server(workspace, False), bound_socket("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    model = open_remote(None, f"{url_of(bound)}#mini")
    yield model
    model.close()
    server.should_exit = True
    thread.join(10)
    bound.close()


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"temperature": 1.0, "seed": 7, "top_k": 5, "min_p": 0.01, "typical_p": 0.9},
        {"repetition_penalty": 1.3, "presence_penalty": 0.5, "logit_bias": {65: 2.0}, "ignore_end": True},
        {"format": ChoiceFormat(options=("sí", "no"))},
        {"format": RegexFormat(pattern="[ab]{3}")},
        {"format": JsonFormat(json_schema={"type": "integer", "minimum": 10, "maximum": 99})},
    ],
)
def test_what_is_asked_over_there_is_answered_as_here(
    local: LocalModel, remote: RemoteModel, config: dict[str, object]
) -> None:
    asked = GenerationConfig(max_new_tokens=12, **config)
    ours, theirs = local.chat(QUESTION, asked), remote.chat(QUESTION, asked)
    assert (theirs.text, theirs.finish_reason, theirs.usage) == (ours.text, ours.finish_reason, ours.usage)
    chunks = list(remote.stream_chat(QUESTION, asked))
    assert "".join(chunk.text for chunk in chunks) == ours.text
    assert chunks[-1].usage == ours.usage
    if "format" not in config:
        assert remote.complete([70, 71, 72], asked).text == local.complete([70, 71, 72], asked).text


def test_an_overflow_over_there_is_one_here_with_the_same_room(
    local: LocalModel, remote: RemoteModel
) -> None:
    asked = GenerationConfig(max_new_tokens=1000)
    with pytest.raises(ContextOverflow) as ours:
        local.chat(QUESTION, asked)
    for ask in (remote.chat, lambda *given: list(remote.stream_chat(*given))):
        with pytest.raises(ContextOverflow) as theirs:
            ask(QUESTION, asked)
        assert theirs.value.room == ours.value.room > 0
    fits = GenerationConfig(max_new_tokens=theirs.value.room)
    assert remote.chat(QUESTION, fits).usage.completion_tokens > 0


def test_likelihoods_are_the_same_as_here(local: LocalModel, remote: RemoteModel) -> None:
    answers = ["sí", "no, señora", ""]
    assert remote.score(QUESTION, answers) == pytest.approx(local.score(QUESTION, answers), abs=2e-3)
    # The control: they depend on the question.
    assert remote.score([Message("user", "x")], answers) != pytest.approx(
        local.score(QUESTION, answers), abs=2e-3
    )


def test_vectors_are_the_same_as_here(local: LocalModel, remote: RemoteModel) -> None:
    texts = ["maleta", [70, 71, 72]]
    ours, theirs = local.embed(texts), remote.embed(texts)
    assert theirs.prompt_tokens == ours.prompt_tokens
    for our, their in zip(ours.vectors, theirs.vectors, strict=True):
        assert their == pytest.approx(our, abs=1e-5)
        assert sum(value * value for value in their) == pytest.approx(1)


def test_its_models_are_listed_and_an_unknown_one_is_told(remote: RemoteModel) -> None:
    assert any("mini" in name for name in remote.models())
    unknown = open_remote(None, remote.at.base_url + "#nope")
    with pytest.raises(ModelUnavailable, match="does not know this model"):
        unknown.chat(QUESTION, GenerationConfig())


def test_settings_that_it_refuses_are_told(remote: RemoteModel) -> None:
    with pytest.raises((ModelUnavailable, UserError)):
        remote.chat(QUESTION, GenerationConfig(format=RegexFormat(pattern="(")))
