"""A shop with a scripted model, a tool that looks, one that gives money back, and a guard."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from yunque.apps.agents import (
    Agent,
    AgentTool,
    ToolError,
    function_tool,
)
from yunque.apps.checks import Checked, Verdict
from yunque.generate.config import GenerationConfig, ToolFormat
from yunque.llm import Completion, LanguageModel, Message, ScriptedModel
from yunque.llm.scripted import Calls, Reply

ORDERS = {7: {"state": "sent", "total": 120.5}, 8: {"state": "paid", "total": 30.0}}


def order(number: int) -> dict[str, object]:
    """The state of an order.

    Args:
        number: what stands on the receipt
    """
    if number not in ORDERS:
        raise ToolError(f"there is no order {number}")
    return ORDERS[number]


def call(name: str, /, **arguments: object) -> Calls:
    return Calls(((name, json.dumps(arguments)),))


def plan(*parts: str) -> str:
    return json.dumps({"subproblems": parts})


FINE = '{"unsupported": []}'


def scripted(*replies: Reply, local: bool = True) -> ScriptedModel:
    return ScriptedModel(list(replies), "scripted", local)


def simple(model: ScriptedModel, *tools: AgentTool, **more: object) -> Agent:
    return Agent("shop", model, tools, plan=False, check=False, **more)  # type: ignore[arg-type]


class Unpriced(ScriptedModel):
    """A remote model that does not say what a call cost."""

    def __init__(self, script: list[Reply]) -> None:
        super().__init__(script, "far", local=False)

    def chat(self, messages: Sequence[Message], config: GenerationConfig) -> Completion:
        return replace(super().chat(messages, config), cost=None)


def refunds() -> tuple[list[tuple[int, str]], AgentTool]:
    """A tool that gives money back, and acts once for a key as a good one does."""
    done: dict[str, int] = {}
    paid: list[tuple[int, str]] = []

    def refund(number: int, idempotency_key: str) -> str:
        """Gives the money of an order back."""
        if idempotency_key not in done:
            done[idempotency_key] = number
            paid.append((number, idempotency_key))
        return f"refunded {number}"

    return paid, function_tool(refund, approval=True)


class Killed(BaseException):
    pass


class Suspicious:
    """A guard that blocks one word in the context, and takes one address out of the question."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def input(self, text: str) -> Checked:
        return Checked(text.replace("ana@example.com", "[EMAIL-1]"))

    def context(self, text: str) -> Checked:
        self.seen.append(text)
        if "IGNORE" in text:
            return Checked(text, (Verdict("injection", "context", "block", "an order"),))
        return Checked(text)

    def output(self, text: str, sources: Sequence[str] = ()) -> Checked:
        assert sources is not None
        return Checked(text, (Verdict("leak", "output", "block"),)) if "SECRET" in text else Checked(text)

    def for_the_log(self, text: str) -> str:
        return text.replace("luis@example.com", "[EMAIL-2]")

    def restore(self, text: str) -> str:
        return text.replace("[EMAIL-1]", "ana@example.com").replace("[EMAIL-2]", "luis@example.com")


def disk(root: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file())


class Calling:
    """A model that has to call a tool first: random weights would not think of it."""

    local = True

    def __init__(self, model: LanguageModel) -> None:
        self.name, self._model = model.name, model

    def chat(self, messages: Sequence[Message], config: GenerationConfig) -> Completion:
        form = config.format
        if isinstance(form, ToolFormat) and messages[-1].role != "tool":
            form = form.model_copy(update={"required": True, "parallel": False})
        return self._model.chat(messages, config.model_copy(update={"format": form}))
