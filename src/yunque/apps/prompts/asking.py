"""A model asked with a prompt: text, or a value of the form that the prompt gives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yunque.apps.prompts.definition import Example, schema_for
from yunque.apps.prompts.prompt import Prompt
from yunque.apps.structured import Answering, ask_for, total_cost, total_usage
from yunque.data.language import detect_language
from yunque.llm.face import Completion, Cost, Usage


@dataclass(frozen=True)
class Answered:
    """What came of a prompt: `value` is validated where the prompt has an answer's form, else it is the text."""

    value: Any
    completions: tuple[Completion, ...]
    hash: str
    language: str

    @property
    def usage(self) -> Usage:
        """The tokens of all calls."""
        return total_usage(self.completions)

    @property
    def cost(self) -> Cost | None:
        """The cost of all calls; None where it is not known."""
        return total_cost(self.completions)


def ask_prompt(
    model: Answering,
    prompt: Prompt,
    values: Mapping[str, Any],
    language: str | None = None,
    examples: Sequence[Example] | None = None,
    attempts: int = 3,
    restore: Callable[[str], str] = str,
) -> Answered:
    """Fill a prompt and ask a model. Without `language` the inputs tell it.

    Raises what `ask_for` raises: NoValidAnswer, ModelUnavailable, ContextOverflow, UserError.
    """
    rendered = prompt.render(values, language or language_of_inputs(values), examples)
    if prompt.answer is not None:
        schema = schema_for(prompt.answer, prompt.definition.checked(values, prompt.where))
        made = ask_for(model, rendered.messages, schema, prompt.generation, attempts, restore)
        return Answered(made.value, made.completions, rendered.hash, rendered.language)
    completion = model.chat(rendered.messages, prompt.generation)
    return Answered(restore(completion.text.strip()), (completion,), rendered.hash, rendered.language)


def language_of_inputs(values: Mapping[str, Any]) -> str | None:
    """The language of the longest text among inputs: es or en, None where it cannot be told."""
    texts = [value for value in values.values() if isinstance(value, str)]
    found = detect_language(max(texts, key=len, default=""))
    return found if found != "und" else None
