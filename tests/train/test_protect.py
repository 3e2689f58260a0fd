"""`protect`: the preset as it is documented, and text of the model's own where the base's data are not at hand."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from yunque.configuration import resolve
from yunque.data.instructions import InstructionRow, write_instructions
from yunque.errors import UserError
from yunque.train import TuneSettings, tune, tuning_rows
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
