"""A model of the workspace behind the common face."""

from collections.abc import Callable
from pathlib import Path

import pytest

from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.llm import ContextOverflow, Message, open_model
from yunque.llm.local import LocalModel
from yunque.workspace import Artifact, Workspace

QUESTION = [Message("system", "Sé breve."), Message("user", "¿Cuántas maletas?")]


@pytest.fixture
def model(tmp_path: Path, put_tiny_model: Callable[..., Artifact]) -> LocalModel:
    workspace = Workspace.open(tmp_path / "ws")
    put_tiny_model(workspace)
    opened = open_model(workspace, "mini")
    assert isinstance(opened, LocalModel)
    return opened


def test_a_model_is_opened_by_every_form_of_its_name(
    tmp_path: Path, put_tiny_model: Callable[..., Artifact]
) -> None:
    workspace = Workspace.open(tmp_path / "ws")
    put_tiny_model(workspace)
    for name in ("mini", "model/mini", "mini@1"):
        opened = open_model(workspace, name)
        assert (opened.name, opened.local) == ("model/mini@1", True)
    with pytest.raises(UserError, match="no model 'maxi'"):
        open_model(workspace, "maxi")


def test_a_conversation_is_read_as_the_chat_format_writes_it(model: LocalModel) -> None:
    completion = model.chat(QUESTION, GenerationConfig(max_new_tokens=4))
    turns = [(message.role, message.content) for message in QUESTION]
    prompt = model.engine.tokenizer.encode_chat(turns, add_generation_prompt=True)[0]
    steps = list(model.engine.stream(prompt, GenerationConfig(max_new_tokens=4)))
    assert completion.text == "".join(step.text for step in steps)
    assert completion.usage.prompt_tokens == len(prompt)
    assert completion.usage.completion_tokens == len(steps)
    assert completion.finish_reason == steps[-1].finish_reason


def test_a_stream_is_the_whole_answer_in_pieces(model: LocalModel) -> None:
    config = GenerationConfig(max_new_tokens=30, temperature=1.0, seed=5)
    whole = model.complete("Cada pasajero", config)
    chunks = list(model.stream_complete("Cada pasajero", config))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert (chunks[-1].finish_reason, chunks[-1].usage, chunks[-1].model) == (
        whole.finish_reason,
        whole.usage,
        "model/mini@1",
    )
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_an_overflow_says_how_much_room_is_left_and_that_much_fits(model: LocalModel) -> None:
    with pytest.raises(ContextOverflow) as caught:
        model.stream_chat(QUESTION, GenerationConfig(max_new_tokens=1000))
    room = caught.value.room
    assert model.chat(QUESTION, GenerationConfig(max_new_tokens=room)).usage.prompt_tokens == 128 - room
    with pytest.raises(ContextOverflow):
        model.chat(QUESTION, GenerationConfig(max_new_tokens=room + 1))
    with pytest.raises(ContextOverflow):
        model.score([Message("user", "x" * 500)], ["sí"])


def test_the_likelihoods_of_an_answer_are_those_of_its_tokens_one_by_one(model: LocalModel) -> None:
    answers = ["positivo", "no"]
    tokenizer = model.engine.tokenizer
    prompt = tokenizer.encode_chat(
        [(each.role, each.content) for each in QUESTION], add_generation_prompt=True
    )[0]
    expected = []
    for answer in answers:
        ids, total = list(prompt), 0.0
        for id in [*tokenizer.encode(answer), tokenizer.end_id]:
            total += model.engine.score(ids, [id])
            ids.append(id)
        expected.append(total)
    assert model.score(QUESTION, answers) == pytest.approx(expected, abs=1e-4)
    # The control: the likelihood depends on the question.
    assert model.score([Message("user", "no")], answers) != pytest.approx(expected, abs=1e-3)
