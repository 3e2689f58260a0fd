"""What a step of a chain may ask of its run: its key, earlier states, models, and what other runs found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from yunque.apps.chains.states import Spent
from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.llm.face import Completion, Cost, LanguageModel, Message, Usage
from yunque.llm.policy import PolicedModel, WirePolicy

if TYPE_CHECKING:
    from yunque.apps.prompts import Answered, Prompt

OpenModel = Callable[[str], LanguageModel]
_MARKS = WirePolicy(personal_data="redact")


@dataclass(frozen=True)
class Recalled:
    """A state that was looked up: the run and the step that it came from, its text, and how near it is."""

    run: str
    path: str
    chain: str
    text: str
    score: float


class Recall(Protocol):
    """Looks up kept states by their text."""

    def __call__(
        self, query: str, k: int = 5, chain: str | None = None, run: str | None = None
    ) -> list[Recalled]:
        """The states nearest to a query."""
        ...


@dataclass
class StepContext:
    """A step at work. A function that has a parameter of this type is given it.

    `key` is the same whenever this step of this run is run again, after a kill too: hand it to whatever the step
    changes outside, so that a second time does nothing. `attempt` counts from 1.
    """

    run: str
    path: str
    key: str
    attempt: int
    values: Mapping[str, Any]
    open_model: OpenModel | None = None
    recall_from: Recall | None = None
    spent: Spent = field(default_factory=Spent)

    def model(self, name: str) -> LanguageModel:
        """The model called `name`; a remote one is shown marks in the place of personal data."""
        if self.open_model is None:
            raise UserError(
                f"step {self.path}: wants the model {name!r}, but this run was given no way to open models"
            )
        return PolicedModel(self.open_model(name), _MARKS)

    def chat(
        self, model: str | LanguageModel, messages: Sequence[Message], config: GenerationConfig | None = None
    ) -> Completion:
        """Ask a model, and count what it takes."""
        opened = self.model(model) if isinstance(model, str) else PolicedModel(model, _MARKS)
        completion = opened.chat(messages, config or GenerationConfig())
        self.count(completion.usage, completion.cost, completion.model)
        return completion

    def ask(
        self,
        model: str | LanguageModel,
        prompt: "Prompt",
        values: Mapping[str, Any],
        language: str | None = None,
    ) -> "Answered":
        """Ask a model with a prompt, and count what it takes, also where no answer has the prompt's form."""
        from yunque.apps.prompts import ask_prompt
        from yunque.apps.structured import NoValidAnswer

        opened = self.model(model) if isinstance(model, str) else PolicedModel(model, _MARKS)
        try:
            answered = ask_prompt(opened, prompt, values, language)
        except NoValidAnswer as refused:
            self.count(refused.usage, refused.cost, opened.name)
            raise
        used = answered.completions[-1].model if answered.completions else opened.name
        self.count(answered.usage, answered.cost, used)
        return answered

    def count(self, usage: Usage, cost: Cost | None, model: str) -> None:
        """Count tokens and money that a model took for this step."""
        before = self.spent
        total = cost if before.cost is None else before.cost + cost if cost else before.cost
        models = before.models if model in before.models else (*before.models, model)
        self.spent = Spent(before.usage + usage, total, models)

    def recall(
        self, query: str, k: int = 5, chain: str | None = None, run: str | None = None
    ) -> list[Recalled]:
        """The kept states, of this run and of others, that are nearest to a query; `chain` or `run` narrow it down.

        Raises UserError where the run was given no index.
        """
        if self.recall_from is None:
            raise UserError(f"step {self.path}: recalls, but this run was given no index of states")
        return self.recall_from(query, k, chain, run)

    def state(self, name: str) -> Any:
        """What an earlier step gave, or `input`, what the chain was given; raises UserError for another name."""
        if name not in self.values:
            known = ", ".join(self.values)
            raise UserError(f"step {self.path}: no step before it is called {name!r} (there are: {known})")
        return self.values[name]
