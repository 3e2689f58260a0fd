"""Answers by a prompt alone: a model, and templates that what the user wrote is put into."""

import json
from dataclasses import replace

from yunque.apps.answer import AppAnswer, Asked, Drafted
from yunque.apps.asking import Asking
from yunque.apps.checks import Exchange
from yunque.apps.heard import Heard
from yunque.llm.face import ModelUnavailable

_REFUSED_NOTE = {
    "es": "Las respuestas del modelo no tenían la forma pedida.",
    "en": "The model's answers did not have the form that was asked for.",
}


class FromPrompt:
    """Asks a model with the app's prompt."""

    index: str | None = None

    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    def draft(self, asked: Asked, exchange: Exchange) -> Drafted:
        """The model's answer; one with a schema fits it, or `known` is False. Raises ModelUnavailable where no model
        could give one."""
        del exchange
        if self._asking.definition.answer:
            return self._structured(asked)
        drafted = self._asking.draft(asked)
        if not drafted.answer.known:
            raise ModelUnavailable(drafted.answer.note)
        return drafted

    def _structured(self, asked: Asked) -> Drafted:
        from yunque.apps.structured import NoValidAnswer, ask_for

        definition, messages = self._asking.definition, self._asking.messages(asked)
        form, heard = definition.answer, Heard()
        model = heard.listening(self._asking.model(asked))
        assert form is not None
        empty = AppAnswer(definition.unknown_answer(asked.language), asked.language, known=False)
        try:
            found = ask_for(model, messages, form.json_schema, definition.generation, form.attempts)
        except NoValidAnswer as refused:
            answer = replace(
                empty,
                note=_REFUSED_NOTE[asked.language],
                model=model.name,
                usage=refused.usage,
                cost=refused.cost,
            )
            return Drafted(answer, heard.prompt_hash)
        answer = AppAnswer(
            json.dumps(found.value, ensure_ascii=False),
            asked.language,
            note=heard.note(asked.language),
            model=found.completions[-1].model,
            usage=found.usage,
            cost=found.cost,
            data=found.value,
        )
        return Drafted(answer, heard.prompt_hash)

    def instead(self, asked: Asked, blocked: AppAnswer) -> AppAnswer | None:
        """Nothing: there are no documents to quote."""
        del asked, blocked
        return None
