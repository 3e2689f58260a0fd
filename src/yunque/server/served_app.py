"""An app behind OpenAI's API: its answer as text that shows its sources, and as data in the field `yunque`."""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from yunque.apps.answer import AppAnswer, AppPiece
from yunque.apps.app import App, load_app
from yunque.errors import UserError
from yunque.guard import CheckList
from yunque.llm import Chunk, Embeddings, LanguageModel, Message, Prompt, Usage
from yunque.llm.budgets import BudgetRefusal
from yunque.server.account import account
from yunque.server.errors import ApiError
from yunque.server.served import Piece, Settings
from yunque.workspace import Workspace

_SOURCES = {"es": "Fuentes:", "en": "Sources:"}
_TOKEN = re.compile(r"\w+|[^\w\s]")


class ServedApp:
    """An app of the workspace.

    The question is the last message of the user; the earlier turns go with it, the client's system messages do not:
    an app has its own. The settings of a
    request (length, temperature, stop...) are not used: how an app answers is written in its definition. What would
    change the shape of the answer is refused.
    """

    def __init__(self, app: App) -> None:
        self.ref = app.ref
        self._app = app

    @classmethod
    def open(cls, workspace: Workspace, ref: str, open_model: Callable[[str], LanguageModel]) -> "ServedApp":
        """The app called `ref`, with its guard; `open_model` gives it the models that it names."""
        return cls(load_app(workspace, ref, CheckList.of, open_model))

    def chat(self, messages: Sequence[Message], settings: Settings) -> Iterator[Chunk]:
        """Answer the last message of the user."""
        asking = [number for number, message in enumerate(messages) if message.role == "user"]
        if not asking:
            raise UserError("messages: an app needs a message of the user, which is its question")
        return self._prepared(messages[asking[-1]].content, settings, messages[: asking[-1]])()

    def complete(self, prompt: Prompt, settings: Settings) -> Iterator[Chunk]:
        """Answer a question; raises UserError for tokens, and for what only models do."""
        return self.prepare(prompt, settings)()

    def prepare(self, prompt: Prompt, settings: Settings) -> Callable[[], Iterator[Chunk]]:
        """As `complete`, begun when it is called."""
        return self._prepared(prompt, settings)

    def _prepared(
        self, prompt: Prompt, settings: Settings, history: Sequence[Message] = ()
    ) -> Callable[[], Iterator[Chunk]]:
        config = settings.config
        if not isinstance(prompt, str):
            raise UserError(f"{self.ref} is an app, and reads text: it has no tokens of its own")
        if config.candidates > 1 or config.logprobs is not None or config.echo or config.format:
            raise UserError(
                f"{self.ref} is an app, and gives one answer as its definition says: it takes no n, logprobs, echo, "
                "tools or form of the answer"
            )
        return partial(self._answer, prompt, history, settings)

    def _answer(self, question: str, history: Sequence[Message], settings: Settings) -> Iterator[Chunk]:
        for piece in self._pieces(question, history, settings):
            if piece.answer is None:
                yield Chunk(piece.text)
                continue
            yield Chunk(piece.text + sources(piece.answer))
            usage = _usage(question, piece.answer)
            account().used(usage.prompt_tokens, usage.completion_tokens)
            yield Piece("", "stop", usage, extra=_extra(piece.answer))

    def _pieces(self, question: str, history: Sequence[Message], settings: Settings) -> Iterator[AppPiece]:
        key = account().key
        who = (f"key/{key.id}",) if key else ()
        try:
            yield from self._app.stream(
                question,
                history=history,
                who=who,
                subject=settings.subject,
                conversation=settings.conversation,
            )
        except BudgetRefusal as refusal:
            raise ApiError(429, str(refusal), code="insufficient_quota") from None

    def embed(self, texts: Sequence[Prompt]) -> Embeddings:
        """Raises UserError."""
        del texts
        raise UserError(f"{self.ref} is an app, and gives no vectors")

    def close(self) -> None:
        """Nothing is held but memory, which goes with it."""


def sources(answer: AppAnswer) -> str:
    """How the answer was made and what it cites, as lines below its text; empty where it cites nothing."""
    parts = [f"({answer.note})"] if answer.note else []
    if answer.citations:
        lines = [f"[{cited.number}] {cited.file}, {cited.locator}" for cited in answer.citations]
        parts.append("\n".join([_SOURCES[answer.language], *lines]))
    return "".join(f"\n\n{part}" for part in parts)


def _usage(question: str, answer: AppAnswer) -> Usage:
    """The model's own count; where no model was asked, words and punctuation marks of question and answer."""
    if answer.usage != Usage(0, 0):
        return answer.usage
    return Usage(len(_TOKEN.findall(question)), len(_TOKEN.findall(answer.text)))


def _extra(answer: AppAnswer) -> dict[str, Any]:
    """The field `yunque`: everything about the answer but its text, and how its usage was counted."""
    values = answer.as_dict()
    del values["text"], values["usage"]
    counted = "words and punctuation marks" if answer.usage == Usage(0, 0) else "tokens of the model"
    return {**values, "usage_counts": counted}
