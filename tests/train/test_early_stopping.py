"""A run that ends when held-out rows no longer gain keeps its best weights, to the bit, wherever it was killed."""

import json
from dataclasses import replace

import pytest
from broken_off import StopAt
from small_writers import ROWS, put_writer, row, settings_of

from yunque.data.instructions import write_instructions
from yunque.data.task_rendering import TaskSettings, add_tasks, rows_in
from yunque.errors import UserError
from yunque.llm import Message
from yunque.llm.local import LocalModel
from yunque.train import TuningRows, tune, tuning_rows
from yunque.train.alignment import parted
from yunque.workspace import Artifact, Workspace

TURNED = {"sí": "no", "no": "sí"}
# The format of an answer is learned first, which helps; what to answer comes later, and is wrong here.
HELD_OUT = [replace(each, id=f"v{each.id}", answer=TURNED[each.answer]) for each in ROWS]


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace.open(tmp_path / "ws")


def run(workspace: Workspace, *arguments, patience: int = 3, **changes) -> Artifact:
    base = put_writer(workspace, "llama")
    settings = settings_of(
        **{"epochs": 60, "checkpoint_every": 3, "early_stopping": {"patience": patience}, **changes}
    )
    return tune(workspace, base.ref, [TuningRows(ROWS, HELD_OUT)], settings, *arguments)


def weights(workspace: Workspace, made: Artifact) -> bytes:
    return workspace.file(made, "model.safetensors").read_bytes()


def log(workspace: Workspace, made: Artifact) -> list[dict]:
    return [json.loads(line) for line in workspace.file(made, "loss.jsonl").read_text().splitlines()]


def test_a_run_ends_when_its_patience_does_and_keeps_the_best_weights(workspace) -> None:
    made = run(workspace)
    losses = [line["validation_loss"] for line in log(workspace, made)]
    best, steps = made.figures["best_step"], made.figures["steps"]
    assert len(losses) == steps == best + 3 < 60
    assert min(losses) == losses[best - 1] == made.figures["validation_loss"] < 0.9 * losses[0]
    opened = LocalModel.open(workspace, made.ref)
    measured = [
        -opened.score([Message("user", each.question)], [each.answer])[0]
        / (len(opened.engine.tokenizer.encode(each.answer)) + 1)
        for each in HELD_OUT
    ]
    mean = sum(measured) / len(measured)
    assert mean == pytest.approx(made.figures["validation_loss"], rel=1e-4)
    # Negative control: the weights at the end are others.
    assert mean != pytest.approx(losses[-1], rel=1e-3)
    seen = json.loads(workspace.file(made, "rows_seen.json").read_text())["datasets"]["rows"]
    assert seen == {each.id: steps for each in ROWS}


def test_a_gain_below_min_delta_is_none(workspace) -> None:
    made = run(workspace, early_stopping={"patience": 2, "min_delta": 100.0})
    assert made.figures["best_step"] == 1 and made.figures["steps"] == 3


@pytest.mark.parametrize(
    "lora", [None, {"rank": 8, "targets": "all-linear", "alpha": 32}], ids=["full", "lora"]
)
def test_killed_around_its_best_step_a_run_ends_with_the_same_bits(workspace, lora) -> None:
    whole = run(workspace, name="whole", lora=lora)
    best, steps = whole.figures["best_step"], whole.figures["steps"]
    losses = [line["loss"] for line in log(workspace, whole)]
    for stop in (best - 1, best, best + 1, steps) if lora is None else (best + 1,):
        name = f"twin-{stop}"
        with pytest.raises(RuntimeError, match="crash"):
            run(workspace, StopAt(stop), name=name, lora=lora)
        again = run(workspace, StopAt(-1), name=name, lora=lora)
        assert weights(workspace, again) == weights(workspace, whole), stop
        assert again.figures["best_step"] == best
        assert [line["loss"] for line in log(workspace, again)] == losses
    # Negative control: with more patience the run is longer.
    other = run(workspace, name="other", patience=5, lora=lora)
    assert other.figures["steps"] == steps + 2


def test_without_a_validation_split_a_share_of_the_rows_is_held_out(workspace) -> None:
    rows = [replace(row(number), id=f"n{number}") for number in range(40)]
    base = put_writer(workspace, "llama")
    data = tuning_rows(workspace, write_instructions(workspace, "tasks", {"train": rows}))
    settings = settings_of(epochs=2, early_stopping={"patience": 9, "share": 0.2})
    made = tune(workspace, base.ref, [data], settings)
    seen = json.loads(workspace.file(made, "rows_seen.json").read_text())["datasets"]["dataset/tasks@1"]
    assert len(seen) == 32
    # The share follows from the ids: the order of the file changes nothing.
    turned = tuning_rows(workspace, write_instructions(workspace, "turned", {"train": rows[::-1]}))
    other = tune(workspace, base.ref, [turned], settings.model_copy(update={"name": "other"}))
    found = json.loads(workspace.file(other, "rows_seen.json").read_text())["datasets"]["dataset/turned@1"]
    assert set(found) == set(seen)
    split = write_instructions(workspace, "split", {"train": rows[:30], "validation": rows[30:]})
    held = tune(
        workspace, base.ref, [tuning_rows(workspace, split)], settings.model_copy(update={"name": "held"})
    )
    seen = json.loads(workspace.file(held, "rows_seen.json").read_text())["datasets"][split.ref]
    assert set(seen) == {each.id for each in rows[:30]}
    with pytest.raises(UserError, match="no row is left to hold out"):
        tune(workspace, base.ref, [TuningRows(rows[:1])], settings)


def test_what_is_held_out_of_a_task_collection_is_nowhere_in_what_is_learned(tmp_path) -> None:
    settings = TaskSettings(templates_per_row=3, few_shot_share=0.6, shots=(0, 2), held_out_share=0.0)
    dataset, _ = add_tasks(Workspace.open(tmp_path / "ws"), "tasks", None, settings)
    rows = tuning_rows(Workspace.open(tmp_path / "ws"), dataset).rows

    def leaks(learn, measure) -> bool:
        held_out = {rows_in(row)[0] for row in measure}
        return any(not held_out.isdisjoint(rows_in(row)) for row in learn)

    learn, measure = parted(rows, [], 0.1, rows_in)
    assert not leaks(learn, measure)
    assert 0.1 * len(rows) <= len(measure) < 0.11 * len(rows)
    assert 0.5 * len(rows) < len(learn) < len(rows) - len(measure)
    # Negative control: parted by their own ids they leak.
    assert leaks(*parted(rows, [], 0.1))


def test_rows_that_show_what_is_held_out_are_told_and_counted(tmp_path) -> None:
    workspace = Workspace.open(tmp_path / "ws")
    shown = [
        replace(each, id=f"sentiment/{n}/t1/few-shot-1/{(n + 1) % 4}", template="sentiment/t1/few-shot-1")
        for n, each in enumerate(ROWS)
    ]
    told = list[str]()
    settings = settings_of(epochs=2, early_stopping={"patience": 2, "share": 0.2})
    made = tune(
        workspace, put_writer(workspace, "llama").ref, [TuningRows(shown)], settings, tell=told.append
    )
    assert "1 rows of rows are left out: they show rows that are held out as examples." in told
    assert made.figures["left_out"] == 1


def test_one_row_at_least_is_left_to_learn_from() -> None:
    learn, measure = parted(ROWS[:2], [], 0.9)
    assert (len(learn), len(measure)) == (1, 1)
    alike = [
        replace(each, id=f"sentiment/1/{n}/zero-shot", template=f"sentiment/{n}/zero-shot")
        for n, each in enumerate(ROWS)
    ]
    assert parted(alike, [], 0.5, rows_in) == (alike, [])
