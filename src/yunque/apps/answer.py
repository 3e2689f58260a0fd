"""What an app answers, and what it is told of a question."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from yunque.apps.checks import Exchange, Verdict
from yunque.apps.retrieval.passages import Passage
from yunque.apps.retrieval.words import Language
from yunque.llm.face import Cost, LanguageModel, Message, Usage

EXTRACTIVE = "extractive"
"""The name under which an answer that no model wrote is logged."""
NO_TOKENS = Usage(0, 0)


@dataclass(frozen=True)
class Citation:
    """Where a part of an answer comes from; `number` is the [n] in its text, `quote` the document's own words."""

    number: int
    file: str
    locator: str
    row_id: str
    quote: str


@dataclass(frozen=True)
class AppAnswer:
    """An answer. `known` is False when the documents do not say or the guard stopped it; `note` says how it was
    made when that matters; `data` is what an answer with a schema holds; `call_id` is its number in the call log."""

    text: str
    language: Language
    citations: tuple[Citation, ...] = ()
    known: bool = True
    extractive: bool = False
    note: str = ""
    model: str = EXTRACTIVE
    usage: Usage = NO_TOKENS
    cost: Cost | None = None
    verdicts: tuple[Verdict, ...] = ()
    data: Any = None
    details: tuple[tuple[str, Any], ...] = ()
    call_id: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "details": dict(self.details)}


@dataclass(frozen=True)
class AppPiece:
    """A piece of a streamed answer; the last one has no text and carries the whole answer."""

    text: str
    answer: AppAnswer | None = None


@dataclass(frozen=True)
class Asked:
    """A question as an app's model may see it: personal data taken out, and what the checks stop left out.

    `history` are the earlier turns of the conversation, whose id is `conversation`; `model` replaces the app's own
    for this once; `who` pays for it besides the app (`key/ID`); `subject` is the person whose question it is.
    """

    question: str
    language: Language
    history: tuple[Message, ...] = ()
    model: LanguageModel | str | None = None
    who: tuple[str, ...] = ()
    subject: str = ""
    conversation: str = ""


@dataclass(frozen=True)
class Drafted:
    """An answer before the output checks, with the hash of the prompt that made it and the passages in that."""

    answer: AppAnswer
    prompt_hash: str = ""
    passages: tuple[Passage, ...] = ()


class Answering(Protocol):
    """One way to answer: from documents, by a prompt, by an agent, by a chain."""

    index: str | None

    def draft(self, asked: Asked, exchange: Exchange) -> Drafted:
        """An answer, not yet checked."""
        ...

    def instead(self, asked: Asked, blocked: AppAnswer) -> AppAnswer | None:
        """What may be said in the place of an answer that the output checks stopped; None for the fixed refusal."""
        ...


def sources_of(answer: AppAnswer) -> Sequence[str]:
    """The quotations that an answer rests on."""
    return [citation.quote for citation in answer.citations]
