"""A model asked on behalf of a task: personal data kept from one that is not local, and every call in the log."""

import time
from collections.abc import Sequence
from typing import Any

from yunque.apps.prompts import hash_of
from yunque.apps.structured import restored, total_cost, total_usage
from yunque.data.personal import Redaction
from yunque.generate.config import ChoiceFormat, GenerationConfig, JsonFormat
from yunque.llm.face import Completion, Cost, LanguageModel, Message, Usage
from yunque.workspace import Call, Workspace


class Calls:
    """The calls of one task on one text. They share their placeholders (`[EMAIL-1]`), and end with it.

    A model that is not local gets placeholders for personal data, unless `send_personal_data`; `restore` puts it
    back. The log (none without a workspace) never has it.
    """

    def __init__(
        self,
        model: LanguageModel,
        target: str,
        workspace: Workspace | None = None,
        send_personal_data: bool = False,
    ) -> None:
        self.model = model
        self.hides = not model.local and not send_personal_data
        self.completions: list[Completion] = []
        self.hashes: list[str] = []
        self._target = target
        self._workspace = workspace
        self._redaction = Redaction()

    def chat(self, messages: Sequence[Message], config: GenerationConfig) -> Completion:
        """Ask the model. What comes back may hold placeholders: see `restore`."""
        redaction = self._redaction if self.hides else Redaction()
        safe = [Message(message.role, redaction.redact(self._spoken(message))) for message in messages]
        if self.hides:
            messages, config = safe, _redacted(config, redaction)
        started = time.monotonic()
        completion = self.model.chat(messages, config)
        seconds = time.monotonic() - started
        self.completions.append(completion)
        self.hashes.append(hash_of(safe))
        self._log(safe, completion, redaction.redact(completion.text) if not self.hides else "", seconds)
        return completion

    def _spoken(self, message: Message) -> str:
        """What a message says. An answer that is shown to the model again holds placeholders of ours: they must stay
        the same ones, and not be taken for something that somebody typed."""
        answered = message.role == "assistant" and message.content
        if answered and any(one.text.startswith(message.content) for one in self.completions):
            return self.restore(message.content)
        return message.content

    def restore(self, text: str) -> str:
        """An answer with the personal data of this task's own texts in its place."""
        return self._redaction.restore(text) if self.hides else text

    @property
    def usage(self) -> Usage:
        """The tokens of all calls."""
        return total_usage(self.completions)

    @property
    def cost(self) -> Cost | None:
        """The cost of all calls; None where it is not known."""
        return total_cost(self.completions)

    def _log(self, safe: Sequence[Message], completion: Completion, answer: str, seconds: float) -> None:
        if self._workspace is None:
            return
        details: dict[str, Any] = {"finish_reason": completion.finish_reason, "note": completion.note}
        if completion.cost is not None:
            details["cost"] = {"usd": completion.cost.usd, "prices_of": completion.cost.prices_of}
        # A model may write personal data of its own making; its placeholders of ours are left as they are.
        written = answer or _without_personal_data(completion.text)
        call = Call(
            self._target, completion.model, safe[-1].content, written, self.hashes[-1],
            completion.usage.prompt_tokens, completion.usage.completion_tokens, round(seconds, 3), details,
        )  # fmt: skip
        self._workspace.log_call(call)


def _without_personal_data(text: str) -> str:
    from yunque.data.personal import find_personal_data

    parts, last = [], 0
    for found in find_personal_data(text):
        parts += [text[last : found.start], f"[{found.kind}]"]
        last = found.end
    return "".join([*parts, text[last:]])


def _redacted(config: GenerationConfig, redaction: Redaction) -> GenerationConfig:
    """A configuration whose form holds no personal data (labels that are addresses)."""
    match config.format:
        case JsonFormat(json_schema=dict() as schema):
            form: Any = JsonFormat(json_schema=restored(schema, redaction.redact))
        case ChoiceFormat(options=options):
            form = ChoiceFormat(options=tuple(map(redaction.redact, options)))
        case _:
            return config
    return config.model_copy(update={"format": form})
