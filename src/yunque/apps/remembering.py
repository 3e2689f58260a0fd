"""The conversations of an app, kept as its file says: what a model is shown of one, and what is added to it."""

from collections.abc import Callable, Sequence

from yunque.apps.definition import AppDefinition
from yunque.apps.memory import Memory, Summarize, read_policy
from yunque.apps.retrieval.words import Language
from yunque.errors import UserError
from yunque.llm.face import ContextOverflow, LanguageModel, Message
from yunque.workspace import Workspace

_ROOM = 4000
"""Tokens of a conversation that are shown to a model whose context is not known."""


class Remembering:
    """Conversations by their ids, each of this app alone."""

    def __init__(self, workspace: Workspace, definition: AppDefinition) -> None:
        self._app = definition.name
        self._memory = Memory.open(
            workspace, read_policy(definition.memory, f"app/{definition.name}: memory")
        )

    def begun(self, conversation: str | None, subject: str = "") -> str:
        """The id of a conversation that goes on, or of a new one. Raises UserError where there is none of this app:
        whose it is says the id, which nobody can guess."""
        if conversation is None:
            return self._memory.begin(subject, self._app)
        if self._memory.conversation(conversation).app != self._app:
            raise UserError(f"there is no conversation {conversation!r} of the app {self._app}")
        return conversation

    def shown(
        self, conversation: str, language: Language, open_model: Callable[[], LanguageModel | None]
    ) -> Sequence[Message]:
        """What of a conversation a model is shown: where it outgrows half of its context, the older part as a summary
        that the model writes."""
        if not self._memory.messages(conversation):
            return ()
        model = open_model()
        context = getattr(model, "context", None)
        room = context // 2 if isinstance(context, int) else _ROOM
        summarize = Summarize(model, language) if model else None
        try:
            return self._memory.window(conversation, room, summarize).messages
        except ContextOverflow:
            # Its last turn alone is too long for the model: the question goes without what came before.
            return ()

    def add(self, conversation: str, question: str, answer: str) -> None:
        """Keep a turn; `question` is empty where an answer follows another one."""
        asked = [Message("user", question)] if question else []
        self._memory.add(conversation, *asked, Message("assistant", answer))
