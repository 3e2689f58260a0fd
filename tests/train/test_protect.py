"""`protect`: the preset as it is documented, and text of the model's own where the base's data are not at hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import row
from yunque.configuration import resolve
from yunque.data.dataset import write_dataset
from yunque.data.instructions import InstructionRow, write_instructions
from yunque.data.preferences import PromptRow, shipped_preferences, write_preferences
from yunque.data.texts import training_texts
from yunque.errors import UserError
from yunque.train import TuneSettings, replayed, tune, tuning_rows
from yunque.train.corpus import Corpus
from yunque.train.replayed import Alternating, learned_datasets
from yunque.train.tune_settings import PROTECTED
from yunque.workspace import Artifact, Workspace

SETTINGS = {"epochs": 2, "batch_size": 4, "precision": "float32"}


@pytest.fixture
def workspace(tmp_path: Path, put_tiny_model: Callable[..., Artifact]) -> Workspace:
    torch.set_num_threads(1)
    made = Workspace.open(tmp_path / "ws")
    put_tiny_model(made, "imported")
    rows = [
        InstructionRow(f"r{n}", "tono", "es", "t", f"¿Qué opina {n}?", "", "sí", ("sí", "no"))
        for n in range(8)
    ]
    write_instructions(made, "tasks", {"train": rows})
    return made


def put_text(workspace: Workspace) -> Artifact:
    return write_dataset(workspace, "text", {"rows": map(row, range(64))}, {}, [], {})


def rows_seen(workspace: Workspace, model: Artifact) -> dict[str, dict[str, int]]:
    return json.loads(workspace.file(model, "rows_seen.json").read_text())["datasets"]


def test_protect_is_the_documented_preset() -> None:
    settings = resolve(TuneSettings, None, [], protect=True)
    shown = settings.model_dump()
    for name, value in PROTECTED.items():
        for part, inner in value.items() if isinstance(value, dict) else [(None, value)]:
            assert (shown[name][part] if part else shown[name]) == inner
    document = (Path(__file__).parents[2] / "docs" / "forgetting.md").read_text(encoding="utf-8")
    for name, value in PROTECTED.items():
        for part, inner in value.items() if isinstance(value, dict) else [("", value)]:
            written = f"{name}.{part}={inner}" if part else f"{name}={inner}".lower()
            assert f"`{written}`" in document
    # The control: without it the settings are not those.
    with pytest.raises(AssertionError):
        assert TuneSettings().model_dump() | {"protect": True} == shown


def test_what_the_user_says_goes_before_the_preset() -> None:
    settings = resolve(TuneSettings, None, ["replay=2", "kl.replayed=0.5"], protect=True)
    assert (settings.replay, settings.kl.replayed) == (2, 0.5)
    assert settings.own_text == PROTECTED["own_text"]


def test_an_imported_model_is_protected_by_text_of_its_own(workspace: Workspace) -> None:
    data = [tuning_rows(workspace, workspace.get("tasks"))]
    settings = TuneSettings.model_validate(SETTINGS | {"protect": True, "own_text": 600, "name": "held"})
    tuned = tune(workspace, "imported", data, settings)
    folder = workspace.runs / tuned.config["run"]
    written = [json.loads(line) for line in (folder / "own_text.jsonl").read_text().splitlines()]
    assert sum(len(ids) for batch in written for ids in batch) >= 600
    assert "kl" in (folder / "loss.jsonl").read_text()
    # Its own text is in no dataset, so the rows seen are those of the task alone.
    seen = json.loads(workspace.file(tuned, "rows_seen.json").read_text())["datasets"]
    assert list(seen) == ["dataset/tasks@1"]
    again = settings.model_copy(update={"name": "again"})
    weights = [
        workspace.file(model, "model.safetensors")
        for model in (tuned, tune(workspace, "imported", data, again))
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_rows_of_an_earlier_tuning_are_replayed_as_they_were_learned(
    workspace: Workspace, put_tiny_model: Callable[..., Artifact]
) -> None:
    tasks = workspace.get("tasks")
    first = tune(workspace, "imported", [tuning_rows(workspace, tasks)], TuneSettings(**SETTINGS, replay=0))
    assert learned_datasets(workspace, first) == ([], [tasks])
    # Instructions that a model was pre-trained on are text like any other.
    assert learned_datasets(workspace, put_tiny_model(workspace, "mini", (tasks,))) == ([tasks], [])
    other = [
        InstructionRow(f"o{n}", "tema", "es", "t", f"¿De qué va {n}?", "", "mar", None) for n in range(4)
    ]
    topics = write_instructions(workspace, "topics", {"train": other})
    settings = TuneSettings.model_validate(SETTINGS | {"protect": True, "own_text": 600, "name": "held"})
    held = tune(workspace, first.ref, [tuning_rows(workspace, topics)], settings)
    seen = json.loads(workspace.file(held, "rows_seen.json").read_text())["datasets"]
    assert set(seen) == {topics.ref, tasks.ref} and "own" not in seen


def test_text_and_tasks_come_by_turns() -> None:
    text = Corpus([[5] * 50], [("dataset/text@1", "a")], 0, 8, 0)
    tasks = Corpus([[7] * 50], [("dataset/tasks@1", "b")], 0, 8, 0)
    both = Alternating(text, tasks)
    ids = both.windows(0, 5).input_ids
    assert [int(row.max()) for row in ids] == [5, 7, 5, 7, 5]
    assert torch.equal(both.windows(3, 2).input_ids, ids[3:])
    assert both.rows_seen(5) == {("dataset/text@1", "a"): 3, ("dataset/tasks@1", "b"): 2}


def test_without_text_to_hold_on_to_it_says_so(workspace: Workspace) -> None:
    data = [tuning_rows(workspace, workspace.get("tasks"))]
    settings = TuneSettings.model_validate(SETTINGS | {"protect": True, "own_text": 0})
    with pytest.raises(UserError, match="replay_data"):
        tune(workspace, "imported", data, settings)


def test_preferences_are_no_text_to_train_on_or_to_replay(workspace: Workspace) -> None:
    prompts = [PromptRow("p", (("user", "¿Qué hora es?"),))]
    for dataset, kind in (
        (shipped_preferences(workspace), "preferences"),
        (write_preferences(workspace, "asked", {"train": prompts}), "prompts"),
    ):
        with pytest.raises(UserError, match=rf"{dataset.ref} holds {kind}: text is read from documents"):
            list(training_texts(workspace, dataset))
        settings = TuneSettings.model_validate(SETTINGS | {"replay_data": [dataset.ref]})
        with pytest.raises(UserError, match=f"{dataset.ref} holds {kind}"):
            tune(workspace, "imported", [tuning_rows(workspace, workspace.get("tasks"))], settings)


def test_a_model_that_learned_from_preferences_is_tuned(
    workspace: Workspace, put_tiny_model: Callable[..., Artifact]
) -> None:
    text = put_text(workspace)
    liked = put_tiny_model(workspace, "liked", (text, shipped_preferences(workspace)))
    assert learned_datasets(workspace, liked) == ([text], [])
    settings = TuneSettings.model_validate(SETTINGS | {"name": "tuned"})
    tuned = tune(workspace, liked.ref, [tuning_rows(workspace, workspace.get("tasks"))], settings)
    assert set(rows_seen(workspace, tuned)) == {text.ref, "dataset/tasks@1"}


def test_by_default_the_text_above_an_earlier_tuning_is_replayed_and_its_rows_are_not(
    workspace: Workspace, put_tiny_model: Callable[..., Artifact]
) -> None:
    text, tasks = put_text(workspace), workspace.get("tasks")
    base = put_tiny_model(workspace, "read", (text,))
    first = tune(
        workspace, base.ref, [tuning_rows(workspace, tasks)], TuneSettings(**SETTINGS, replay=0, name="first")
    )
    other = [
        InstructionRow(f"o{n}", "tema", "es", "t", f"¿De qué va {n}?", "", "mar", None) for n in range(4)
    ]
    topics = write_instructions(workspace, "topics", {"train": other})
    second = tune(workspace, first.ref, [tuning_rows(workspace, topics)], TuneSettings(**SETTINGS, name="2"))
    assert set(rows_seen(workspace, second)) == {text.ref, topics.ref}
    # What is named goes before it.
    named = TuneSettings.model_validate(SETTINGS | {"name": "3", "replay_data": [tasks.ref]})
    third = tune(workspace, first.ref, [tuning_rows(workspace, topics)], named)
    assert set(rows_seen(workspace, third)) == {tasks.ref, topics.ref}


def test_a_run_has_the_threads_that_it_began_to_write_with(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, write = list[int](), replayed.own_documents

    def stopped(*arguments: Any) -> Any:
        threads.append(torch.get_num_threads())
        if len(threads) == 1:
            raise RuntimeError("crash")
        return write(*arguments)

    monkeypatch.setattr(replayed, "own_documents", stopped)
    data = [tuning_rows(workspace, workspace.get("tasks"))]
    settings = TuneSettings.model_validate(SETTINGS | {"own_text": 300, "name": "held"})
    with pytest.raises(RuntimeError, match="crash"):
        tune(workspace, "imported", data, settings)
    try:
        torch.set_num_threads(2)
        tuned = tune(workspace, "imported", data, settings)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert threads == [1, 1]
    record = json.loads((workspace.runs / tuned.config["run"] / "run.json").read_text())
    assert record["plan"]["threads"] == 1
