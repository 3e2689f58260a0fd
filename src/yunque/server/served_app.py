"""An app behind OpenAI's API: its answer as text that shows its sources, and as data in the field `yunque`."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from yunque.apps.app import App, AppAnswer
from yunque.errors import UserError
from yunque.guard import open_app
from yunque.llm import Message, Usage
from yunque.server.served import Piece, Settings
from yunque.workspace import Workspace

_SOURCES = {"es": "Fuentes:", "en": "Sources:"}
_TOKEN = re.compile(r"\w+|[^\w\s]")


class ServedApp:
    """An app of the workspace.

    The question is the last message of the user; what stands before it is not given to the app. The settings of a
    request (length, temperature, stop...) are not used: how an app answers is written in its definition.
    """

    def __init__(self, app: App) -> None:
        self.ref = app.ref
        self._app = app

    @classmethod
    def open(cls, workspace: Workspace, ref: str) -> "ServedApp":
        """The app called `ref`, with its guard."""
        return cls(open_app(workspace, ref))

    def chat(self, messages: Sequence[Message], settings: Settings) -> Iterator[Piece]:
        """Answer the last message of the user."""
        questions = [message.content for message in messages if message.role == "user"]
        if not questions:
            raise UserError("messages: an app needs a message of the user, which is its question")
        return self.complete(questions[-1], settings)

    def complete(self, prompt: str, settings: Settings) -> Iterator[Piece]:
        """Answer a question."""
        del settings
        for piece in self._app.stream(prompt):
            if piece.answer is None:
                yield Piece(piece.text)
                continue
            yield Piece(piece.text + sources(piece.answer))
            yield Piece("", "stop", _usage(prompt, piece.answer), _extra(piece.answer))


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
