"""Answers by a prompt alone: a model, and templates that what the user wrote is put into."""

from yunque.apps.answer import AppAnswer, Asked, Drafted
from yunque.apps.asking import Asking
from yunque.apps.checks import Exchange
from yunque.llm.face import ModelUnavailable


class FromPrompt:
    """Asks a model with the app's prompt."""

    index: str | None = None

    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    def draft(self, asked: Asked, exchange: Exchange) -> Drafted:
        """The model's answer; raises ModelUnavailable where no model could give one."""
        del exchange
        drafted = self._asking.draft(asked)
        if not drafted.answer.known:
            raise ModelUnavailable(drafted.answer.note)
        return drafted

    def instead(self, asked: Asked, blocked: AppAnswer) -> AppAnswer | None:
        """Nothing: there are no documents to quote."""
        del asked, blocked
        return None
