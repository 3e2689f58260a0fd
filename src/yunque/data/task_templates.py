"""The templates of a task: text with `{field}` places that a row fills.

They are data. A place is a name and nothing else (no attributes, no formats), what a row says is put in as it is and
never read again, and `{{` and `}}` stand for the braces themselves.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

LABELS_PLACE = "labels"
_MARKS = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@dataclass(frozen=True)
class Pattern:
    """Text with places: a literal, a place, a literal, ..., a literal."""

    literals: tuple[str, ...]
    places: tuple[str, ...]

    def fill(self, values: Mapping[str, str]) -> str:
        """The text with the value of each place in it."""
        filled = [self.literals[0]]
        for place, literal in zip(self.places, self.literals[1:], strict=True):
            filled += [values[place], literal]
        return "".join(filled)

    @property
    def wording(self) -> tuple[str, ...]:
        """What it says apart from its values and from how its places are called: the same for the same template."""
        return tuple(" ".join(literal.casefold().split()) for literal in self.literals)


def parse_pattern(text: str, known: Collection[str]) -> Pattern:
    """A text as a pattern; raises ValueError for a place that is not `known`, or a brace that is alone."""
    literals, places, start = [""], list[str](), 0
    for mark in _MARKS.finditer(text):
        literals[-1] += text[start : mark.start()]
        start = mark.end()
        if mark[0] in ("{{", "}}"):
            literals[-1] += mark[0][0]
        elif mark[1] is None:
            raise ValueError(f"has a lone {mark[0]!r}: write {mark[0] * 2!r} for the brace itself")
        elif mark[1] not in known:
            raise ValueError(f"has the place {mark[0]!r}, which is no field ({', '.join(sorted(known))})")
        else:
            places.append(mark[1])
            literals.append("")
    literals[-1] += text[start:]
    return Pattern(tuple(literals), tuple(places))


@dataclass(frozen=True)
class Asked:
    """A template filled by a row: what is asked, what is answered, and what the answer is chosen from."""

    instruction: str
    answer: str
    labels: tuple[str, ...] | None


@dataclass(frozen=True)
class Template:
    """One way to ask a task, called by its number: "2", or "inverted-1" where the answer is given and asked from.

    `{labels}` in the instruction is the list of the labels.
    """

    name: str
    instruction: Pattern
    answer: Pattern
    labels: tuple[Pattern, ...] | None

    def ask(self, values: Mapping[str, str]) -> Asked:
        """Fill it; raises ValueError where the answer is not one of the labels, or two labels are the same."""
        labels = tuple(label.fill(values) for label in self.labels) if self.labels else None
        answer = self.answer.fill(values)
        if labels is not None:
            if len(set(labels)) != len(labels):
                raise ValueError(f"two of the labels are the same ({', '.join(labels)})")
            if answer not in labels:
                raise ValueError(f"the answer {answer!r} is not one of the labels ({', '.join(labels)})")
        listed = {**values, LABELS_PLACE: ", ".join(labels or ())}
        return Asked(self.instruction.fill(listed), answer, labels)
