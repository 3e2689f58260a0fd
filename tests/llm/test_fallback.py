"""Several models as one."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.llm import Chunk, FallbackModel, Message, ModelUnavailable, ScriptedModel, Usage, open_model
from yunque.workspace import Workspace

QUESTION = [Message("user", "¿cuántas maletas?")]
CONFIG = GenerationConfig()


class Breaking(ScriptedModel):
    """Streams `before` and then cannot go on."""

    def __init__(self, *before: str) -> None:
        super().__init__([], "breaking")
        self.before = before

    def stream_chat(self, messages: Sequence[Message], config: GenerationConfig) -> Iterator[Chunk]:
        del messages, config
        for text in self.before:
            yield Chunk(text)
        raise ModelUnavailable("breaking broke")


def test_the_next_model_answers_when_one_cannot() -> None:
    model = FallbackModel(
        [ScriptedModel([ModelUnavailable("first is away")], "first"), ScriptedModel(["dos"], "second")]
    )
    completion = model.chat(QUESTION, CONFIG)
    assert (completion.text, completion.model) == ("dos", "second")


def test_when_none_can_answer_all_reasons_are_told() -> None:
    model = FallbackModel(
        [ScriptedModel([], "first"), ScriptedModel([ModelUnavailable("second is away")], "second")]
    )
    with pytest.raises(ModelUnavailable, match=r"first: has no reply left; second is away"):
        model.chat(QUESTION, CONFIG)


def test_a_mistake_of_the_user_goes_to_no_other_model() -> None:
    second = ScriptedModel(["dos"])
    model = FallbackModel([ScriptedModel([UserError("too long")]), second])
    with pytest.raises(UserError):
        model.chat(QUESTION, CONFIG)
    assert second.asked == []


def test_a_stream_falls_back_while_nothing_was_sent() -> None:
    chunks = list(
        FallbackModel([Breaking(""), ScriptedModel(["dos maletas"], "second")]).stream_chat(QUESTION, CONFIG)
    )
    assert "".join(chunk.text for chunk in chunks) == "dos maletas"
    assert (chunks[-1].model, chunks[-1].finish_reason, chunks[-1].usage) == ("second", "stop", Usage(2, 2))


def test_a_stream_that_began_is_not_continued_by_another_model() -> None:
    second = ScriptedModel(["dos"])
    chunks = FallbackModel([Breaking("una"), second]).stream_chat(QUESTION, CONFIG)
    assert next(chunks).text == "una"
    with pytest.raises(ModelUnavailable, match="breaking broke"):
        next(chunks)
    assert second.asked == []


def test_one_remote_model_makes_the_whole_remote() -> None:
    local, remote = ScriptedModel([], local=True), ScriptedModel([], local=False)
    assert FallbackModel([local, local]).local
    assert not FallbackModel([local, remote]).local


def test_a_scripted_reply_ends_at_the_length_asked_for() -> None:
    completion = ScriptedModel(["uno dos tres"]).chat(QUESTION, GenerationConfig(max_new_tokens=2))
    assert (completion.text, completion.finish_reason) == ("uno dos", "length")


def test_models_are_opened_by_address(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "ws")
    opened = open_model(workspace, "http://127.0.0.1:9/v1#mini")
    assert (opened.name, opened.local) == ("http://127.0.0.1:9/v1#mini", False)
    with pytest.raises(UserError, match="not the name of a model"):
        open_model(workspace, "ftp://host/v1#mini")
