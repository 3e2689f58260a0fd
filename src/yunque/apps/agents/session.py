"""One run of an agent at work: models asked and tools called within limits, each kept, so that it can be redone."""

import contextvars
import json
import math
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from yunque.apps.agents.journal import Journal
from yunque.apps.agents.limits import LimitReached, Limits, Spent
from yunque.apps.agents.privacy import Privacy
from yunque.apps.agents.tape import Tape
from yunque.apps.agents.tools import AgentTool, CallContext, ToolError, ToolResult, plain_result
from yunque.apps.agents.wording import DENIED, REPEATED, UNCERTAIN, WITHHELD
from yunque.apps.agents.wrapping import cut, wrapped
from yunque.apps.chains.apart import apart, reason_of
from yunque.apps.keeping.json_values import digest, to_text
from yunque.generate.config import GenerationConfig, ToolFormat
from yunque.llm.face import (
    Completion,
    ContextOverflow,
    Cost,
    LanguageModel,
    Message,
    ModelUnavailable,
    ToolCall,
    Usage,
)
from yunque.llm.under_way import UnderWay, under_way

Approve = Callable[["PendingCall"], bool]
Price = Callable[[Usage], float]
_SHORTEST_ANSWER = 8
_TOKENS_OF_A_MESSAGE = 32
_TOKENS_ABOUT_TOOLS = 512
_LONGEST_ERROR = 500


@dataclass(frozen=True)
class PendingCall:
    """A call that waits for a person. `arguments` are for that person: the values, not the marks."""

    run: str
    call: str
    tool: str
    arguments: dict[str, Any]
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


class Paused(Exception):
    """A person has to decide first."""

    def __init__(self, pending: PendingCall) -> None:
        super().__init__(pending.tool)
        self.pending = pending


@dataclass(frozen=True)
class ToolRecord:
    """A call that was made: the model's arguments, what came back (as the model saw it), whether it failed, and what
    was suspicious about it."""

    call: str
    tool: str
    arguments: Any
    text: str
    failed: bool
    suspicion: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Setting:
    """What a run works with."""

    run: str
    nonce: str
    model: LanguageModel
    tools: dict[str, AgentTool]
    limits: Limits
    generation: GenerationConfig
    most_characters: int
    approve: Approve | None
    price: Price | None
    runner: Any


class Session:
    """A run under way; see `yunque.apps.agents.runner` for what it does with it."""

    def __init__(self, setting: Setting, privacy: Privacy, tape: Tape, journal: Journal) -> None:
        self.setting, self.privacy, self.tape, self._journal = setting, privacy, tape, journal
        self.spent = Spent()
        self.records: list[ToolRecord] = []
        self._seen: Counter[str] = Counter()
        self._first: dict[str, ToolRecord] = {}
        self._last: tuple[list[str], Usage] = ([], Usage(0, 0))
        self._suspicious = False

    def chat(self, messages: Sequence[Message], config: GenerationConfig) -> Completion:
        """Ask the model, or give the answer that is kept. Raises LimitReached before a call that could pass a limit,
        ModelUnavailable as the model does."""
        prints = [_print(message) for message in messages]
        room = self._room(messages, prints, config)
        config = config.model_copy(update={"max_new_tokens": min(config.max_new_tokens, room)})
        known = _common(prints, self._last[0])
        form = config.format.model_dump(mode="json") if config.format else None
        asked = {"messages": prints, "form": digest(form), "max_new_tokens": config.max_new_tokens}
        kept = self.tape.take("model", asked)
        if kept is None:
            completion, spent = self._asked(messages, config)
            kept = {
                "asked": asked,
                "new_messages": [asdict(message) for message in messages[known:]],
                "answer": _told(completion),
                "spent": spent.as_dict(),
            }
            self.tape.put("model", kept)
        completion = _read(kept["answer"])
        self.spent += Spent.of(kept["spent"])
        self._last = (prints, completion.usage)
        return completion

    def _asked(self, messages: Sequence[Message], config: GenerationConfig) -> tuple[Completion, Spent]:
        """Ask the model now. A remote one gives up when the time is over; one that runs here ends its answer."""
        began = time.monotonic()
        left = self.setting.limits.less(self.spent).seconds
        call = UnderWay(None if left is None else began + left, under_way())
        try:
            with call.current():
                completion = self.setting.model.chat(messages, config)
        except ContextOverflow:
            raise LimitReached("context") from None
        except ModelUnavailable:
            if left is not None and time.monotonic() - began >= left:
                raise LimitReached("seconds", self.setting.limits.seconds) from None
            raise
        cost = completion.cost
        if cost is None and self.setting.price is not None:
            cost = Cost(self.setting.price(completion.usage))
        return completion, Spent(1, completion.usage, cost, time.monotonic() - began)

    def call(self, asked: ToolCall) -> Message:
        """Make a call that a model asked for; what came of it as a message for the model. Never raises what a tool
        raises. Raises Paused, and LimitReached for a call that is made a third time."""
        number = f"c{len(self.records) + 1}"
        tool = self.setting.tools.get(asked.name)
        try:
            arguments = json.loads(asked.arguments or "{}", parse_constant=_refused)
            fault = tool.fault(arguments) if tool else None
        except (ValueError, RecursionError):
            arguments, fault = asked.arguments, "the arguments are not JSON"
        if tool is None:
            fault = f"there is no tool {asked.name!r}; there are: {', '.join(self.setting.tools)}"
        same = digest([asked.name, arguments])
        self._seen[same] += 1
        if self._seen[same] > 2:
            raise LimitReached("repeated")
        if self._seen[same] == 2:
            record = self._first[same]
            self.records.append(record)
            shown = self.shown(record, asked.id)
            return replace(shown, content=f"{REPEATED}\n{shown.content}")
        record = self._made(number, tool, asked.name, arguments, fault)
        self._first[same] = record
        self.records.append(record)
        return self.shown(record, asked.id)

    def _made(
        self, number: str, tool: AgentTool | None, name: str, arguments: Any, fault: str | None
    ) -> ToolRecord:
        """A call that was not made before: kept already, refused, or made now."""
        asked = {"call": number, "tool": name, "arguments": arguments}
        if fault or tool is None:
            kept = self.tape.take("tool", asked)
            if kept is None:
                kept = {"asked": asked, "text": str(fault), "failed": True, "spent": Spent().as_dict()}
                self.tape.put("tool", kept)
            return self._seen_as(number, name, arguments, kept)
        self._check_limits()
        real = self.privacy.restored(arguments) if tool.local else arguments
        allowed, reason = None, self._reason_to_ask(tool, real)
        if reason:
            allowed = self._decided(PendingCall(self.setting.run, number, name, real, reason))
        kept = self.tape.take("tool", asked)
        if kept is None:
            if allowed is False:
                kept = {"asked": asked, "text": DENIED, "failed": True, "spent": Spent().as_dict()}
            else:
                kept = {"asked": asked, **self._run(number, tool, arguments, real, bool(allowed))}
            self.tape.put("tool", kept)
        return self._seen_as(number, name, arguments, kept)

    def _reason_to_ask(self, tool: AgentTool, arguments: dict[str, Any]) -> str:
        """Why a person has to agree to a call; empty where nobody has to."""
        try:
            with apart():
                needed = tool.needs_approval(arguments)
            if needed:
                return "the tool is marked so"
        except Exception as error:  # a rule that fails must not let a call through
            return f"the rule for its approval failed ({type(error).__name__})"
        return "an earlier result looked suspicious" if self._suspicious else ""

    def _decided(self, pending: PendingCall) -> bool:
        decision = self._journal.decision(pending.run, pending.call)
        if decision is None:
            if self.tape.replayed or self.setting.approve is None:
                raise Paused(pending)
            decision = bool(self.setting.approve(pending))
            self._journal.decide(pending.run, pending.call, decision)
        return decision

    def _run(
        self, number: str, tool: AgentTool, arguments: dict[str, Any], real: dict[str, Any], allowed: bool
    ) -> dict[str, Any]:
        """Run a tool; its result or its failure as what is kept of the step."""
        setting = self.setting
        key = digest([setting.run, tool.name, arguments])[:32]
        began = time.monotonic()
        if (
            tool.effect != "none"
            and not self._journal.begin_call(setting.run, number, key)
            and tool.effect == "once"
        ):
            return {"text": UNCERTAIN, "failed": True, "spent": Spent().as_dict()}
        left = setting.limits.less(self.spent)
        seconds = min(tool.timeout, math.inf if left.seconds is None else max(0.01, left.seconds))
        context = CallContext(
            *(setting.run, number, key, seconds, left, setting.approve),
            allowed=allowed,
            runner=setting.runner,
        )
        spent = Spent()

        def made() -> ToolResult:
            with apart():
                return plain_result(tool.run(real, context))

        try:
            result = made() if tool.ends_itself else _in_time(made, seconds)
            spent, failed = result.spent, False
            text = result.value if isinstance(result.value, str) else to_text(result.value)
        except Paused:
            raise
        except ToolError as error:
            text, failed = str(error), True
        except TimeoutError:
            after = "; it may still be done" if tool.effect != "none" else ""
            text, failed = f"no answer within {seconds:.3g} seconds{after}", True
        except Exception as error:
            text, failed = reason_of(error), True
        text = cut(text, setting.most_characters) if not failed else text[:_LONGEST_ERROR]
        took = Spent(0, Usage(0, 0), Cost(0.0), time.monotonic() - began - spent.seconds)
        return {"text": text, "failed": failed, "spent": (spent + took).as_dict()}

    def _seen_as(self, number: str, name: str, arguments: Any, kept: dict[str, Any]) -> ToolRecord:
        """A kept result as the model may see it."""
        self.spent += Spent.of(kept["spent"])
        seen = self.privacy.result(kept["text"])
        if seen.suspicion is not None:
            self._suspicious = True
        if seen.withheld:
            return ToolRecord(number, name, arguments, WITHHELD, True, seen.suspicion)
        return ToolRecord(number, name, arguments, seen.text, kept["failed"], seen.suspicion)

    def shown(self, record: ToolRecord, id: str | None = None) -> Message:
        """A result as a message for the model: data between marks."""
        text = f"error: {record.text}" if record.failed else record.text
        name = record.tool if record.tool in self.setting.tools else "unknown"
        return Message("tool", wrapped(text, self.setting.nonce, name), tool_call_id=id)

    def _check_limits(self) -> None:
        limits = self.setting.limits
        if limits.seconds is not None and self.spent.seconds >= limits.seconds:
            raise LimitReached("seconds", limits.seconds)

    def _room(self, messages: Sequence[Message], prints: Sequence[str], config: GenerationConfig) -> int:
        """How many tokens may be written, so that no limit can be passed; raises LimitReached."""
        limits, spent = self.setting.limits, self.spent
        self._check_limits()
        if limits.steps is not None and spent.steps >= limits.steps:
            raise LimitReached("steps", limits.steps)
        most = config.max_new_tokens
        prompt = self._most_tokens(messages, prints, config)
        if limits.tokens is not None:
            most = min(most, limits.tokens - spent.tokens - prompt)
            if most < min(_SHORTEST_ANSWER, config.max_new_tokens):
                raise LimitReached("tokens", limits.tokens)
        if limits.usd is not None and self.setting.price is not None:
            price, left = self.setting.price, limits.usd - spent.usd
            if price(Usage(prompt, most)) > left:
                read = price(Usage(prompt, 0))
                written = price(Usage(prompt, 1)) - read
                most = int((left - read) / written) if written > 0 and left > read else 0
                # The price is not asked to be a straight line: less, until it fits.
                while most > 0 and price(Usage(prompt, most)) > left:
                    most //= 2
            if most < min(_SHORTEST_ANSWER, config.max_new_tokens):
                raise LimitReached("usd", limits.usd)
        return most

    def _most_tokens(
        self, messages: Sequence[Message], prints: Sequence[str], config: GenerationConfig
    ) -> int:
        """The most tokens that a prompt can have: one for each byte that the model did not read just before."""
        last, usage = self._last
        known = len(last) if last and list(prints[: len(last)]) == last else 0
        fresh = messages[known:]
        size = sum(len(_text(message).encode(errors="replace")) for message in fresh)
        form = len(config.format.model_dump_json().encode()) + _TOKENS_ABOUT_TOOLS if config.format else 0
        return (usage.prompt_tokens if known else 0) + size + form + _TOKENS_OF_A_MESSAGE * (len(fresh) + 1)

    def tool_format(self) -> ToolFormat | None:
        """The tools as the model is told of them."""
        tools = tuple(tool.shown() for tool in self.setting.tools.values())
        return ToolFormat(tools=tools) if tools else None


def _in_time(run: Callable[[], Any], seconds: float) -> Any:
    """What a function gives, if it does within so many seconds; raises TimeoutError. Nothing can stop it."""
    answers: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
    around = contextvars.copy_context()

    def work() -> None:
        try:
            answers.put((True, around.run(run)))
        except BaseException as error:
            answers.put((False, error))

    threading.Thread(target=work, daemon=True, name="yunque-tool").start()
    try:
        done, value = answers.get(timeout=None if math.isinf(seconds) else seconds)
    except queue.Empty:
        raise TimeoutError from None
    if done:
        return value
    raise value


def _refused(name: str) -> Any:
    raise ValueError(name)


def _text(message: Message) -> str:
    return message.content + "".join(f"{call.name}{call.arguments}" for call in message.tool_calls)


def _print(message: Message) -> str:
    return digest(asdict(message))[:16]


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    for place, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return place
    return min(len(first), len(second))


def _told(completion: Completion) -> dict[str, Any]:
    return asdict(completion)


def _read(values: dict[str, Any]) -> Completion:
    return Completion(
        values["text"],
        values["model"],
        values["finish_reason"],
        Usage(**values["usage"]),
        tuple(ToolCall(**call) for call in values["tool_calls"]),
        Cost(**values["cost"]) if values["cost"] else None,
        values["note"],
    )
