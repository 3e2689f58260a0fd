"""The rows of a tuning: read from datasets, turned into ids, and those that do not fit told with their place."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from yunque.data.instructions import InstructionRow, places_of, read_instruction_split
from yunque.errors import UserError
from yunque.generate.conversation import encode_answer, encode_prompt, positions_needed
from yunque.model import LanguageModel
from yunque.tokenizer import Tokenizer
from yunque.train.objectives.answers import Example
from yunque.workspace import Artifact, Workspace

OnBad = Callable[[str], None]
"""Takes the sentence about a row that is left out."""

# What rows of no dataset are called in rows_seen.json.
_UNNAMED = "rows"


@dataclass(frozen=True)
class TuningRows:
    """Rows to learn from, and rows that only measure how far learning is; `dataset` is where they are from."""

    rows: Sequence[InstructionRow]
    validation: Sequence[InstructionRow] = ()
    dataset: Artifact | None = None

    @property
    def ref(self) -> str:
        """What the dataset is called."""
        return self.dataset.ref if self.dataset else _UNNAMED


def tuning_rows(workspace: Workspace, dataset: Artifact) -> TuningRows:
    """The training rows of a dataset of instructions, and its validation rows where it has any.

    Raises UserError for a dataset without training rows.
    """
    if "train.jsonl" not in dataset.files:
        raise UserError(f"{dataset.ref} has no training rows (its files: {', '.join(sorted(dataset.files))})")
    held_out = "validation.jsonl" in dataset.files
    return TuningRows(
        read_instruction_split(workspace, dataset, "train"),
        read_instruction_split(workspace, dataset, "validation") if held_out else (),
        dataset,
    )


def encode_rows(
    tokenizer: Tokenizer,
    model: LanguageModel,
    rows: Sequence[InstructionRow],
    dataset: Artifact | None,
    context: int,
    on_bad: OnBad | None,
) -> list[Example]:
    """Rows as examples for `model`.

    One that is longer than the context, or that the chat template cannot write, raises UserError with its place, or
    is told to `on_bad` and left out.
    """
    examples: list[Example] = []
    bad: dict[str, str] = {}
    for row in rows:
        try:
            written = encode_answer(tokenizer, model, [("user", row.question)], row.answer)
            if (needed := positions_needed(model, written)) > context:
                raise UserError(f"the row has {needed} tokens, and the model's context is {context}")
        except UserError as error:
            bad[row.id] = str(error)
            continue
        examples.append(Example((dataset.ref if dataset else _UNNAMED, row.id), row.task, written))
    places = places_of(dataset, bad.keys()) if bad else {}
    for id, problem in bad.items():
        sentence = f"{places.get(id, f'row {id!r}')}: {problem}"
        if on_bad is None:
            more = f" ({len(bad)} rows are like this)" if len(bad) > 1 else ""
            raise UserError(f"{sentence}{more}; shorten it, or leave bad rows out with --skip-bad")
        on_bad(sentence)
    return examples


def is_asked_as_taught(tokenizer: Tokenizer, model: LanguageModel, row: InstructionRow) -> bool:
    """Whether what a row is learned after is what serving will ask: a token that spans the end of the question and
    the beginning of the answer (after a blank, say) is in the one and not in the other."""
    asked = [("user", row.question)]
    return encode_answer(tokenizer, model, asked, row.answer).prompt == encode_prompt(tokenizer, model, asked)
