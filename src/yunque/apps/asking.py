"""Asking an app's models: the filled templates, the fallbacks, and what is left out when it does not fit."""

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from yunque.apps.answer import AppAnswer, Asked, Drafted
from yunque.apps.definition import AppDefinition
from yunque.apps.retrieval.passages import Passage
from yunque.errors import UserError
from yunque.llm.face import ContextOverflow, LanguageModel, Message, ModelUnavailable

OpenModel = Callable[[str], LanguageModel]

SHORTEST_ANSWER = 32
"""A model that has room for fewer tokens than this is given fewer passages instead."""

_NO_MODEL_NOTE = {
    "es": "El modelo {model} no está disponible.",
    "en": "The model {model} is not available.",
}
_TOO_SHORT_NOTE = {
    "es": "La pregunta con sus pasajes no cabe en el contexto del modelo {model}.",
    "en": "The question with its passages does not fit in the context of the model {model}.",
}


class Asking:
    """The models of an app, and the prompt that they are asked with."""

    def __init__(self, definition: AppDefinition, ref: str, open_model: OpenModel | None) -> None:
        self.definition, self.ref = definition, ref
        self._open_model = open_model

    def draft(self, asked: Asked, passages: Sequence[Passage] | None = None) -> Drafted:
        """Ask the model, then the fallbacks; `known` is False in the answer when none could.

        Raises UserError where the app names no model, and ContextOverflow where there are no passages to leave out.
        """
        model = asked.model if asked.model is not None else self.definition.model
        if model is None:
            raise UserError(f"{self.ref}: needs a model, and names none: say which with --model")
        notes: list[str] = []
        for candidate in (model, *self.definition.fallbacks):
            opened = candidate if not isinstance(candidate, str) else self.opened(candidate)
            try:
                return self._asked(opened, asked, passages or ())
            except ModelUnavailable:
                notes.append(_NO_MODEL_NOTE[asked.language].format(model=opened.name))
            except ContextOverflow:
                if passages is None:
                    raise
                notes.append(_TOO_SHORT_NOTE[asked.language].format(model=opened.name))
        return Drafted(AppAnswer("", asked.language, known=False, note=" ".join(notes)))

    def opened(self, name: str) -> LanguageModel:
        """The model of this name."""
        if self._open_model is None:
            raise UserError(f"{self.ref}: was opened without a way to open the model {name!r}")
        return self._open_model(name)

    def _asked(self, model: LanguageModel, asked: Asked, passages: Sequence[Passage]) -> Drafted:
        """The model's answer; what does not fit in its context is cut, the answer's length first, then passages."""
        config = self.definition.generation
        while True:
            messages = self.messages(asked, passages)
            try:
                completion = model.chat(messages, config)
                break
            except ContextOverflow as overflow:
                if SHORTEST_ANSWER <= overflow.room < config.max_new_tokens:
                    config = config.model_copy(update={"max_new_tokens": overflow.room})
                elif len(passages) > 1:
                    passages = passages[: len(passages) // 2]
                else:
                    raise
        answer = AppAnswer(
            completion.text.strip(),
            asked.language,
            note=completion.note,
            model=completion.model,
            usage=completion.usage,
            cost=completion.cost,
        )
        return Drafted(answer, prompt_hash(messages), tuple(passages))

    def messages(self, asked: Asked, passages: Sequence[Passage] = ()) -> list[Message]:
        """The filled templates. What the user wrote is a value in them, never a part of a template."""
        language = asked.language
        values: dict[str, Any] = {
            "question": asked.question,
            "passages": passages,
            "unknown": self.definition.unknown_answer(language),
        }
        prompt, messages = self.definition.prompt, list[Message]()
        if system := prompt.system.get(language) or next(iter(prompt.system.values()), ""):
            messages.append(Message("system", _environment().from_string(system).render(values)))
        user = prompt.user.get(language) or next(iter(prompt.user.values()))
        return [*messages, *asked.history, Message("user", _environment().from_string(user).render(values))]


def prompt_hash(messages: Sequence[Message]) -> str:
    """What a call is known by in the log: the SHA-256 of the prompt, without what was answered."""
    return hashlib.sha256("\0".join(f"{m.role}\0{m.content}" for m in messages).encode()).hexdigest()


@cache
def _environment() -> Any:
    # Loaded late: quoting documents needs no templates.
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(autoescape=False, keep_trailing_newline=False)
