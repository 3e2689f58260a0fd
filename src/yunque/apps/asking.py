"""Asking an app's models: the filled templates, the fallbacks, and what is left out when it does not fit."""

from collections.abc import Sequence
from typing import Any

from yunque.apps.answer import AppAnswer, Asked, Drafted
from yunque.apps.definition import AppDefinition
from yunque.apps.heard import Heard
from yunque.apps.models import AppModels
from yunque.apps.prompts.rendering import TemplateFault, fill
from yunque.apps.retrieval.passages import Passage
from yunque.errors import UserError
from yunque.llm.face import ContextOverflow, LanguageModel, Message, ModelUnavailable

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

    def __init__(self, definition: AppDefinition, ref: str, models: AppModels) -> None:
        self.definition, self.ref, self.models = definition, ref, models

    def draft(self, asked: Asked, passages: Sequence[Passage] | None = None) -> Drafted:
        """Ask the model, or its fallbacks; `known` is False in the answer when none could.

        Raises UserError where the app names no model, and ContextOverflow where there are no passages to leave out.
        """
        heard = Heard()
        model = heard.listening(self.model(asked))
        try:
            return self._asked(model, heard, asked, passages or ())
        except ModelUnavailable:
            note = _NO_MODEL_NOTE
        except ContextOverflow:
            if passages is None:
                raise
            note = _TOO_SHORT_NOTE
        said = note[asked.language].format(model=", ".join((model.name, *self.definition.fallbacks)))
        return Drafted(AppAnswer("", asked.language, known=False, note=said))

    def model(self, asked: Asked) -> LanguageModel:
        """What a question is put to; raises UserError where there is nothing."""
        model = asked.model if asked.model is not None else self.definition.model
        if model is None:
            raise UserError(f"{self.ref}: needs a model, and names none: say which with --model")
        return self.models.routed(model, asked.who, asked.subject)

    def _asked(
        self, model: LanguageModel, heard: Heard, asked: Asked, passages: Sequence[Passage]
    ) -> Drafted:
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
            note=heard.note(asked.language),
            model=completion.model,
            usage=completion.usage,
            cost=completion.cost,
        )
        return Drafted(answer, heard.prompt_hash, tuple(passages))

    def messages(self, asked: Asked, passages: Sequence[Passage] = ()) -> list[Message]:
        """The filled templates. What the user wrote is a value in them, never a part of a template."""
        language = asked.language
        values: dict[str, Any] = {
            "question": asked.question,
            "passages": [
                {"text": one.text, "heading": one.heading, "file": one.file, "locator": one.locator}
                for one in passages
            ],
            "unknown": self.definition.unknown_answer(language),
        }
        prompt = self.definition.prompt
        system = prompt.system.get(language) or next(iter(prompt.system.values()), "")
        user = prompt.user.get(language) or next(iter(prompt.user.values()), "")
        if not user:
            raise UserError(f"{self.ref}: has no prompt.user, which a model is asked with")
        try:
            filled = fill([(template, values) for template in (system, user) if template])
        except TemplateFault as fault:
            raise UserError(f"{self.ref}: its prompt cannot be filled: {fault}") from None
        head = [Message("system", filled[0])] if system else []
        return [*head, *asked.history, Message("user", filled[-1])]
