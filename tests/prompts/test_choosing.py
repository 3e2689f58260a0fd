"""Examples chosen by a metric: kept only if rows that the choice never saw do better; a kill loses nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from yunque.apps.prompts import Example, Prompt, prompt_from_text
from yunque.apps.prompts.choosing import choose_examples, read_examples
from yunque.errors import UserError
from yunque.llm import Message, ModelUnavailable, ScriptedModel

SOURCE = "---\nname: double\nlanguages: [en]\ninputs: [text]\n---\n[user]\n{{ text }}\n"


def _rows(*numbers: int) -> list[Example]:
    return [Example(inputs={"text": str(n)}, answer=str(2 * n)) for n in numbers]


def _exact(answer: Any, expected: Any) -> float:
    return float(answer == expected)


def _learns(messages: Sequence[Message]) -> str:
    """Knows what is wanted only after an example with an even number."""
    asked = int(messages[-1].content)
    shown = [int(m.content) for m in messages[:-1] if m.role == "user"]
    return str(2 * asked) if any(n % 2 == 0 for n in shown) else "?"


@pytest.fixture
def prompt() -> Prompt:
    return prompt_from_text(SOURCE, "double.prompt")


TRAIN, DEV, HELD = _rows(1, 3, 4, 5), _rows(11, 12, 13), _rows(21, 22)


@pytest.mark.parametrize("search", ["greedy", "random"])
def test_examples_that_help_are_kept(prompt: Prompt, search: Any) -> None:
    chosen = choose_examples(
        prompt, ScriptedModel(_learns), TRAIN, DEV, HELD, _exact, shots=2, search=search, trials=8
    )
    assert chosen.kept and any(example.inputs["text"] == "4" for example in chosen.examples)
    assert (chosen.held_out_before, chosen.held_out_after) == (0.0, 1.0)
    shown = chosen.prompt.render({"text": "7"}).messages
    assert len(shown) == 1 + 2 * len(chosen.examples) and chosen.prompt.source != prompt.source
    if search == "greedy":
        assert len(chosen.examples) == 1  # a second one would not help


def test_examples_that_help_on_dev_alone_are_not_kept(prompt: Prompt) -> None:
    def overfits(messages: Sequence[Message]) -> str:
        return (
            str(2 * int(messages[-1].content))
            if len(messages) > 1 and int(messages[-1].content) < 20
            else "?"
        )

    chosen = choose_examples(prompt, ScriptedModel(overfits), TRAIN, DEV, HELD, _exact, shots=1)
    assert chosen.dev_after > chosen.dev_before and chosen.held_out_after == chosen.held_out_before
    assert not chosen.kept and chosen.prompt is prompt


def test_a_search_that_stops_goes_on_where_it_was(prompt: Prompt, tmp_path: Path) -> None:
    journal = tmp_path / "scores.jsonl"
    whole = ScriptedModel(_learns)
    expected = choose_examples(prompt, whole, TRAIN, DEV, HELD, _exact, shots=2)
    calls = 0

    def dies(messages: Sequence[Message]) -> str:
        nonlocal calls
        calls += 1
        if calls > 7:
            raise ModelUnavailable("gone")
        return _learns(messages)

    with pytest.raises(ModelUnavailable):
        choose_examples(prompt, ScriptedModel(dies), TRAIN, DEV, HELD, _exact, shots=2, journal=journal)
    journal.write_bytes(journal.read_bytes() + b'["cut')
    rest = ScriptedModel(_learns)
    again = choose_examples(prompt, rest, TRAIN, DEV, HELD, _exact, shots=2, journal=journal)
    assert again.examples == expected.examples and len(rest.asked) == len(whole.asked) - 7
    idle = ScriptedModel([])
    assert (
        choose_examples(prompt, idle, TRAIN, DEV, HELD, _exact, shots=2, journal=journal).kept
        and not idle.asked
    )
    other = ScriptedModel(_learns)
    choose_examples(
        prompt, other, TRAIN, DEV, HELD, _exact, shots=2, journal=journal, journal_key="another model"
    )
    assert len(other.asked) == len(whole.asked)


def test_the_same_seed_makes_the_same_choice(prompt: Prompt) -> None:
    train = _rows(*range(30, 60))
    chosen = [
        choose_examples(
            prompt, ScriptedModel(_learns), train, DEV, HELD, _exact, 3, "random", 3, seed
        ).examples
        for seed in (1, 1, 2)
    ]
    assert chosen[0] == chosen[1] != chosen[2]


def test_sets_that_share_a_row_are_refused(prompt: Prompt) -> None:
    with pytest.raises(UserError, match="held-out row 1 is in the dev set"):
        choose_examples(prompt, ScriptedModel([]), TRAIN, DEV, DEV, _exact)
    with pytest.raises(UserError, match="dev set is empty"):
        choose_examples(prompt, ScriptedModel([]), TRAIN, [], HELD, _exact)


def test_rows_are_read_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"inputs": {"text": "1"}, "answer": "2"}\n\n{"inputs": 3, "answer": "2"}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl:3: inputs"):
        read_examples(path)
    path.write_text('{"inputs": {"text": "1"}, "answer": "2"}\n{nope\n')
    with pytest.raises(UserError, match=r"rows\.jsonl:2: not JSON"):
        read_examples(path)
