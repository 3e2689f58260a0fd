"""An agent: a model, its tools, and how it works: plan, sub-problems, tools, check."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from yunque.apps.agents.limits import LimitName, Limits, Spent
from yunque.apps.agents.session import PendingCall, Price, ToolRecord
from yunque.apps.agents.tools import AgentTool
from yunque.apps.agents.wording import Language
from yunque.apps.checks import Verdict
from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.llm.face import LanguageModel

AnswerCheck = Callable[[str, Sequence[ToolRecord]], Sequence[str]]
"""What in an answer is not borne out by the results: nothing, or a sentence for each."""
AnswerStatus = Literal["answered", "paused", "limit", "blocked", "failed"]
_MOST_SUBPROBLEMS = 5


@dataclass(frozen=True)
class Agent:
    """A model with tools.

    `plan`: it first divides the question into at most `most_subproblems`. `check`: the answer's claims are held
    against the results, by the model or by a function, and it answers again at most `check_attempts` times. A tool's
    result has at most `most_characters`. `price` tells the dollars of a call from its tokens, where `limits.usd` is
    set and the price list does not know the model.
    """

    name: str
    model: LanguageModel
    tools: Sequence[AgentTool] = ()
    instructions: str = ""
    limits: Limits = field(default_factory=Limits)
    plan: bool = True
    check: bool | AnswerCheck = True
    check_attempts: int = 1
    most_subproblems: int = _MOST_SUBPROBLEMS
    most_characters: int = 8000
    generation: GenerationConfig = field(default_factory=lambda: GenerationConfig(max_new_tokens=512))
    price: Price | None = None

    def __post_init__(self) -> None:
        names = [tool.name for tool in self.tools]
        if doubled := {name for name in names if names.count(name) > 1}:
            raise UserError(f"agent {self.name}: two tools are called {sorted(doubled)[0]!r}")
        if not 100 <= self.most_characters <= 1_000_000:
            raise UserError(f"agent {self.name}: most_characters must be from 100 to 1,000,000")
        if not 1 <= self.most_subproblems <= 20 or not 0 <= self.check_attempts <= 5:
            raise UserError(
                f"agent {self.name}: most_subproblems is from 1 to 20, check_attempts from 0 to 5"
            )
        if self.generation.format is not None or self.generation.candidates > 1:
            raise UserError(f"agent {self.name}: its generation takes no format, n or best_of")


@dataclass(frozen=True)
class AgentAnswer:
    """What an agent answered. `status`: `answered`; `paused`, waiting for a person (`pending`); `limit`, stopped by
    the limit `limit`; `blocked` by the guard; `failed`, the model is away. `checked` is None where nothing was
    checked. `results` are the calls that were made, `note` says what a user should know."""

    text: str
    status: AnswerStatus
    run: str
    language: Language
    spent: Spent
    plan: tuple[str, ...] = ()
    results: tuple[ToolRecord, ...] = ()
    pending: PendingCall | None = None
    limit: LimitName | None = None
    checked: bool | None = None
    note: str = ""
    model: str = ""
    verdicts: tuple[Verdict, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "spent": self.spent.as_dict()}


def numbers_are_in_results(answer: str, results: Sequence[ToolRecord]) -> list[str]:
    """An AnswerCheck without a model: each number of two or more digits in the answer stands in a result too.

    Sums that a model worked out itself are reported as well: let a tool do them.
    """
    import re

    known = {_digits(found) for record in results for found in re.findall(r"\d[\d.,]*", record.text)}
    said = dict.fromkeys(re.findall(r"\d[\d.,]*\d", answer))
    return [f"{number} is in no result" for number in said if _digits(number) not in known]


def _digits(number: str) -> str:
    return "".join(letter for letter in number if letter.isdigit()).lstrip("0")
