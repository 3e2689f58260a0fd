"""Task collections as instruction rows: what is held out stays out, and the same seed makes the same rows."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from yunque.cli.data import app
from yunque.data.instructions import InstructionRow, read_instruction_split
from yunque.data.task_collections import Task, TaskRow
from yunque.data.task_rendering import (
    RenderedTasks,
    TaskSettings,
    _check_wording,
    add_tasks,
    render_tasks,
    rows_in,
)
from yunque.data.task_templates import Template, parse_pattern
from yunque.errors import UserError
from yunque.workspace import Workspace

FIELDS = ("asked", "answered")


def template(name: str, instruction: str, answer: str) -> Template:
    return Template(name, parse_pattern(instruction, FIELDS), parse_pattern(answer, FIELDS), None)


def make_task(name: str, pairs: list[tuple[str, str]], cluster: str = "c") -> Task:
    rows = [
        TaskRow(f"{name}/{number}", {"asked": asked, "answered": answered})
        for number, (asked, answered) in enumerate(pairs)
    ]
    ways = [template(str(number), f"{name} way {number}: {{asked}}", "{answered}") for number in (1, 2, 3)]
    back = template("inverted-1", f"{name} back: {{answered}}", "{asked}")
    return Task(name, cluster, "en", FIELDS, tuple(ways), (back,), tuple(rows))


WORDS = st.text("abñ{}", min_size=1, max_size=3)
PAIRS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=12, unique=True)


@st.composite
def collections(draw: st.DrawFn) -> tuple[list[Task], TaskSettings]:
    tasks = [
        make_task(f"task{number}", draw(PAIRS), cluster=f"c{number % 3}")
        for number in range(draw(st.integers(2, 5)))
    ]
    return tasks, TaskSettings(
        shots=tuple(draw(st.lists(st.integers(0, 4), min_size=1, max_size=3))),
        few_shot_share=draw(st.floats(0, 1)),
        inversion=draw(st.sampled_from([0.0, 0.3, 1.0])),
        templates_per_row=draw(st.integers(1, 4)),
        held_out_tasks=("task1",),
        held_out_share=draw(st.sampled_from([0.0, 0.1, 0.5, 0.9])),
        max_characters=draw(st.sampled_from([30, 80, 2000])),
        seed=draw(st.integers(0, 5)),
    )


def check_nothing_held_out_was_trained_on(tasks: list[Task], rendered: RenderedTasks) -> None:
    """No row, template or example of an unseen task in train; no held-out row in it, as a row or as an example."""
    train = rendered.splits["train"]
    by_id = {row.id: row for task in tasks for row in task.rows}

    def base(row_id: str) -> str:
        return "/".join(row_id.split("/")[:2])

    trained_rows = {base(row.id) for row in train}
    for split in ("heldout", "unseen"):
        for row in rendered.splits.get(split, ()):
            assert base(row.id) not in trained_rows
            if split == "unseen":
                assert row.task not in {each.task for each in train}
                assert not any(f"{row.task} " in each.instruction for each in train)
            # Each block of a prompt is one instruction, alone or as an example.
            own = row.instruction
            assert all(own not in _blocks(each.instruction) for each in train)
            assert base(row.id) in by_id


def _blocks(prompt: str) -> list[str]:
    blocks = prompt.split("\n\n")
    return [block.rsplit("\n", 1)[0] for block in blocks[:-1]] + blocks[-1:]


@given(collections())
@settings(max_examples=60, deadline=None)
def test_what_is_held_out_never_occurs_in_train(made) -> None:
    tasks, wanted = made
    try:
        rendered = render_tasks(tasks, wanted)
    except UserError as error:
        assert "no row left to train on" in str(error)
        return
    check_nothing_held_out_was_trained_on(tasks, rendered)
    assert len(rendered.splits["unseen"]) == len(tasks[1].rows)
    assert all(row.template.endswith("/zero-shot") for row in rendered.splits["unseen"])
    assert all("/inverted" not in row.template for row in rendered.splits["unseen"])
    ids = [row.id for rows in rendered.splits.values() for row in rows]
    assert len(set(ids)) == len(ids)
    for row in rendered.splits["train"]:
        assert "few-shot" not in row.template or len(row.instruction) <= wanted.max_characters
        shots = len(_blocks(row.instruction)) - 1
        assert row.template.endswith(f"/few-shot-{shots}" if shots else "/zero-shot")
        own, examples = _blocks(row.instruction)[-1], _blocks(row.instruction)[:-1]
        assert own not in examples
    again = render_tasks(list(tasks), wanted)
    assert again == rendered


def test_the_check_above_finds_a_held_out_row_in_train() -> None:
    """Negative control: a row of each split for measuring, put into train as a row or as an example."""
    tasks = [make_task("task0", [(str(n), str(n)) for n in range(9)]), make_task("task1", [("a", "b")])]
    rendered = render_tasks(tasks, TaskSettings(held_out_tasks=("task1",)))
    check_nothing_held_out_was_trained_on(tasks, rendered)
    train = rendered.splits["train"]
    for split in ("heldout", "unseen"):
        stolen = rendered.splits[split][0]
        example = train[0].__class__(
            **{**vars(train[0]), "instruction": f"{stolen.instruction}\nx\n\n{train[0].instruction}"}
        )
        for wrong in (stolen, example):
            bad = RenderedTasks({**rendered.splits, "train": [*train, wrong]}, (), 0)
            with pytest.raises(AssertionError):
                check_nothing_held_out_was_trained_on(tasks, bad)


def many(name: str = "t", count: int = 200) -> Task:
    return make_task(name, [(f"q{number}", f"a{number}") for number in range(count)])


def test_shares_are_about_what_was_asked_for() -> None:
    wanted = TaskSettings(shots=(0, 2, 4), few_shot_share=0.3, inversion=0.2, templates_per_row=3)
    rendered = render_tasks([many()], wanted)
    train = rendered.splits["train"]
    assert len(rendered.splits["heldout"]) == 20
    assert 0.95 * 540 < len(train) <= 540
    few = sum("few-shot" in row.template for row in train) / len(train)
    inverted = sum("/inverted-" in row.template for row in train) / len(train)
    assert 0.24 < few < 0.36 and 0.13 < inverted < 0.26
    counted = rendered.tasks[0]
    assert sum(counted["forms"].values()) == counted["train"] == len(train)
    assert set(counted["forms"]) == {"zero-shot", "few-shot-2", "few-shot-4"}
    assert counted["inverted"] == round(inverted * len(train))


def test_every_row_has_examples_where_zero_is_not_among_the_shots() -> None:
    train = render_tasks([many()], TaskSettings(shots=(3,), few_shot_share=0.0)).splits["train"]
    assert all(row.template.endswith("/few-shot-3") for row in train)
    none = render_tasks([many()], TaskSettings(shots=(0,), few_shot_share=1.0)).splits["train"]
    assert all(row.template.endswith("/zero-shot") for row in none)


def test_rows_for_measuring_use_every_template_in_turn() -> None:
    held = render_tasks([many()], TaskSettings(held_out_share=0.3)).splits["heldout"]
    uses = [sum(f"/{number}/" in row.template for row in held) for number in (1, 2, 3)]
    assert uses == [20, 20, 20]


def test_another_task_changes_nothing_for_the_rest() -> None:
    wanted = TaskSettings(templates_per_row=2)
    alone = render_tasks([many("a")], wanted).splits["train"]
    beside = render_tasks([many("a"), many("b")], wanted).splits["train"]
    assert [row for row in beside if row.task == "a"] == alone
    other = render_tasks([many("a")], TaskSettings(templates_per_row=2, seed=1)).splits["train"]
    assert other != alone


def test_fewer_tasks_are_a_part_of_more_and_unseen_tasks_stay_the_same() -> None:
    tasks = [make_task(f"t{number}", [("a", "b"), ("c", "d")]) for number in range(8)]
    known = list[set[str]]()
    for count in (1, 3, 7):
        wanted = TaskSettings(train_tasks=count, held_out_tasks=("t0",))
        rendered = render_tasks(tasks, wanted)
        known.append({row.task for row in rendered.splits["train"]})
        assert len(known[-1]) == count
        assert {row.task for row in rendered.splits["unseen"]} == {"t0"}
    assert known[0] < known[1] < known[2]


def test_rows_that_are_asked_alike_are_held_out_together() -> None:
    """One word with several translations: the held-out one would be asked in training too."""
    pairs = [(f"q{number // 4}", f"a{number}") for number in range(40)]
    rendered = render_tasks([make_task("t", pairs)], TaskSettings(held_out_share=0.2))
    held = {row.instruction.split()[-1] for row in rendered.splits["heldout"]}
    trained = {
        row.instruction.split()[-1] for row in rendered.splits["train"] if "inverted" not in row.template
    }
    assert held and trained and not held & trained
    assert rendered.overlapping == 0


def test_a_training_row_that_another_task_asks_for_measuring_is_left_out_and_counted() -> None:
    first = make_task("a", [("x", "1"), ("y", "2"), ("z", "3")])
    second = Task("b", "c", "en", FIELDS, (template("1", "a way {asked}", "{answered}"),), (), ())
    second = Task(**{**vars(second), "rows": (TaskRow("b/0", {"asked": "1: x", "answered": "1"}),)})
    wanted = TaskSettings(
        held_out_tasks=("b",), held_out_share=0.0, templates_per_row=3, inversion=0.0, shots=(0,)
    )
    rendered = render_tasks([first, second], wanted)
    assert rendered.splits["unseen"][0].instruction == "a way 1: x"
    assert rendered.overlapping == 1
    assert "a way 1: x" not in {row.instruction for row in rendered.splits["train"]}


def test_a_held_out_task_in_the_words_of_a_trained_one_is_refused() -> None:
    pairs = [("a", "b"), ("c", "d")]
    first, second = make_task("one", pairs), make_task("two", pairs)
    same = Task(**{**vars(second), "templates": first.inverted})
    with pytest.raises(
        UserError, match=r"two is held out, but its template inverted-1 is worded as .* of one"
    ):
        render_tasks([first, same], TaskSettings(held_out_tasks=("two",)))
    # Without inversion nobody trains on that template.
    assert render_tasks([first, same], TaskSettings(held_out_tasks=("two",), inversion=0.0)).splits["unseen"]


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (TaskSettings(held_out_tasks=("x",)), "no task 'x' to hold out (there is: a, b)"),
        (TaskSettings(held_out_clusters=("x",)), "no cluster 'x' to hold out (there is: c)"),
        (TaskSettings(held_out_clusters=("c",)), "every task is held out"),
        (TaskSettings(train_tasks=3), "3 tasks to train on were asked for, and there are 2"),
    ],
)
def test_a_wish_that_cannot_be_met_is_told(wanted, told) -> None:
    with pytest.raises(UserError) as caught:
        render_tasks([many("a", 3), many("b", 3)], wanted)
    assert told in str(caught.value)


def test_the_shipped_collection_can_have_any_task_held_out() -> None:
    from yunque.data.task_collections import shipped_tasks

    tasks = shipped_tasks()
    for task in tasks:
        divided = [other for other in tasks if other.name != task.name], [task]
        _check_wording(*divided, with_inverted=True)
    rendered = render_tasks(tasks, TaskSettings(held_out_clusters=("letters", "facts"), shots=(0,)))
    assert {row.task for row in rendered.splits["unseen"]} == {
        task.name for task in tasks if task.cluster in ("letters", "facts")
    }
    assert rendered.overlapping == 0


def test_the_dataset_is_one_of_instructions_and_the_same_again(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "ws")
    wanted = TaskSettings(held_out_clusters=("copy",))
    artifact, rendered = add_tasks(workspace, "tasks", None, wanted)
    assert add_tasks(workspace, "tasks", None, wanted)[0].ref == artifact.ref
    for split, rows in rendered.splits.items():
        assert read_instruction_split(workspace, artifact, split) == list(rows)
    assert artifact.figures["unseen_tasks"] == 6
    with pytest.raises(UserError, match=r"no file 'nada.jsonl'"):
        read_instruction_split(workspace, artifact, "nada")


runner = CliRunner()


def test_the_command_tells_tasks_templates_and_shots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YUNQUE_WORKSPACE", str(tmp_path / "ws"))
    made = runner.invoke(
        app,
        ["tasks", "-n", "t", "--held-out-task", "pick-es", "--held-out-cluster", "copy", "--shots", "0,3"],
    )
    assert made.exit_code == 0
    assert "tasks: 46 (7 unseen), clusters: 13" in made.stdout and "few-shot-3" in made.stdout
    shown = json.loads(runner.invoke(app, ["show", "t", "--rows", "1", "--json"]).stdout)
    tasks = {task["task"]: task for task in shown["card"]["tasks"]}
    assert tasks["pick-es"]["unseen"] == 80 and tasks["pick-es"]["train"] == 0
    assert tasks["pick-en"]["cluster"] == "choose" and tasks["pick-en"]["templates"] == 4
    assert [row["split"] for row in shown["rows"]] == ["train", "heldout", "unseen"]
    listed = runner.invoke(app, ["list"])
    assert "560 unseen" in listed.stdout
    wrong = runner.invoke(app, ["tasks", "-n", "t", "--shots", "two"])
    assert isinstance(wrong.exception, UserError) and "--shots" in str(wrong.exception)
    many = runner.invoke(app, ["tasks", "-n", "t", "--shots", "0,101"])
    assert isinstance(many.exception, UserError)
    assert str(many.exception) == "--shots: a prompt has at most 100 examples, not 101"


def test_other_datasets_of_rows_are_shown_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from yunque.data.instructions import shipped_instructions
    from yunque.data.preferences import shipped_preferences

    monkeypatch.setenv("YUNQUE_WORKSPACE", str(tmp_path / "ws"))
    workspace = Workspace.open()
    shipped_instructions(workspace)
    shipped_preferences(workspace)
    shown = json.loads(runner.invoke(app, ["show", "instructions", "--json"]).stdout)
    assert shown["card"]["splits"] == {"train": 720, "heldout": 240}
    assert len(shown["card"]["tasks"]) == 8 and shown["card"]["tasks"][0]["templates"] == 13
    drawn = runner.invoke(app, ["show", "preferences", "--rows", "1"])
    assert drawn.exit_code == 0 and "64 train" in drawn.stdout and "rejected: " in drawn.stdout


def test_a_row_tells_which_rows_it_asks_and_shows() -> None:
    task = make_task("task", [(f"a{n}", f"b{n}") for n in range(30)])
    rendered = render_tasks([task], TaskSettings(shots=(0, 2), few_shot_share=0.5, templates_per_row=3))
    asked = {row.values["asked"]: row.id for row in task.rows}
    forms = set[int]()
    for row in (row for rows in rendered.splits.values() for row in rows):
        if "inverted" in row.template:
            continue
        words = [line.rsplit(" ", 1)[1] for line in row.instruction.splitlines() if ": " in line]
        assert sorted(rows_in(row)) == sorted(asked[word] for word in words)
        assert rows_in(row)[0] == asked[words[-1]]
        forms.add(len(words))
    assert forms == {1, 3}


@pytest.mark.parametrize(
    ("id", "template"),
    [
        ("own/name/1/zero-shot", "t"),
        ("task/1/2/few-shot-1/3", "task/3/few-shot-1"),
        ("a/b", "task"),
        ("", ""),
    ],
)
def test_rows_of_other_origin_are_themselves_alone(id: str, template: str) -> None:
    row = InstructionRow(id, "task", "en", template, "?", "", "!")
    assert rows_in(row) == (id,)
