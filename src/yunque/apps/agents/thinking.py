"""How an agent thinks: a plan, each sub-problem with the tools, the answer, and a check of it."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from yunque.apps.agents.agent import Agent
from yunque.apps.agents.session import Session
from yunque.apps.agents.wording import (
    CHECK,
    COMPOSE,
    MEND,
    NO_ANSWER,
    NO_CHECK,
    PLAN,
    RULES,
    SUBPROBLEM,
    UNCHECKED,
    Language,
)
from yunque.apps.structured import NoValidAnswer, ask_for
from yunque.generate.config import GenerationConfig
from yunque.llm.face import Completion, ContextOverflow, Message, ToolCall

_MOST_PROBLEM_CHARACTERS = 500


@dataclass(frozen=True)
class Draft:
    """An answer as it grows: what was found out so far, until it is whole. `checked` is None before the check."""

    text: str = ""
    plan: tuple[str, ...] = ()
    checked: bool | None = None
    note: str = ""


class Thinking:
    """The way of one run from its question to its answer. `draft` is what there is when it is broken off."""

    def __init__(self, agent: Agent, session: Session, language: Language, question: str) -> None:
        self._agent, self._session, self._language, self._question = agent, session, language, question
        rules = RULES[language].format(nonce=session.setting.nonce)
        self._messages = [Message("system", f"{agent.instructions}\n\n{rules}".strip())]
        self.draft = Draft()

    def answer(self) -> Draft:
        """Plan, solve, answer, check. Raises Paused, LimitReached, ModelUnavailable."""
        plan = self._plan()
        self.draft = replace(self.draft, plan=tuple(plan))
        if len(plan) == 1:
            self._say(self._question)
            text = self._solved()
        else:
            self._say(self._question)
            for number, part in enumerate(plan, 1):
                asked = SUBPROBLEM[self._language].format(number=number, all=len(plan), text=part)
                # The first belongs to the question: two messages of the user in a row are refused by some templates.
                self._say(asked, joined=number == 1)
                found = self._solved()
                self.draft = replace(self.draft, text=f"{self.draft.text} {found}".strip())
            self._say(COMPOSE[self._language].format(question=self._question))
            text = self._solved()
        self.draft = replace(self.draft, text=text)
        return self._checked()

    def _plan(self) -> list[str]:
        most = self._agent.most_subproblems
        if not self._agent.plan or most == 1 or not self._agent.tools:
            return [self._question]
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {
                "subproblems": {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1,
                                "maxItems": most}
            },
            "required": ["subproblems"],
            "additionalProperties": False,
        }  # fmt: skip
        tools = "; ".join(f"{tool.name}: {tool.description[:200]}" for tool in self._agent.tools)
        asked = PLAN[self._language].format(most=most, tools=tools, question=self._question)
        value = self._asked_for(asked, schema)
        # A plan that cannot be read is no reason not to answer.
        return value["subproblems"] if value else [self._question]

    def _solved(self) -> str:
        """Let the model call tools until it answers; its words."""
        config = self._agent.generation.model_copy(update={"format": self._session.tool_format()})
        while True:
            completion = self._session.chat(self._messages, config)
            calls = _with_ids(completion, len(self._messages))
            self._messages.append(Message("assistant", completion.text, tuple(map(_sendable, calls))))
            if not calls:
                return completion.text.strip() or NO_ANSWER[self._language]
            for call in calls:
                self._messages.append(self._session.call(call))

    def _say(self, text: str, joined: bool = False) -> None:
        if joined:
            text = f"{self._messages.pop().content}\n\n{text}"
        self._messages.append(Message("user", text))

    def _checked(self) -> Draft:
        """The draft after its claims were held against the results; answered again where they do not hold."""
        if self._agent.check is False or not self._session.records:
            return self.draft
        for attempt in range(self._agent.check_attempts + 1):
            problems = self._problems()
            if problems is None:
                return replace(self.draft, note=NO_CHECK[self._language])
            if not problems:
                return replace(self.draft, checked=True, note="")
            said = "; ".join(problems)[:_MOST_PROBLEM_CHARACTERS]
            self.draft = replace(
                self.draft, checked=False, note=UNCHECKED[self._language].format(problems=said)
            )
            if attempt == self._agent.check_attempts:
                break
            self._say(MEND[self._language].format(problems=said))
            self.draft = replace(self.draft, text=self._solved())
        return self.draft

    def _problems(self) -> list[str] | None:
        """What in the answer is not borne out; None where that could not be found out."""
        if callable(self._agent.check):
            found = self._agent.check(
                self._session.privacy.restored(self.draft.text), tuple(self._session.records)
            )
            return [str(problem) for problem in found]
        results = "\n".join(
            str(self._session.shown(record).content) for record in self._session.records if not record.failed
        )
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {"unsupported": {"type": "array", "items": {"type": "string"}}},
            "required": ["unsupported"],
            "additionalProperties": False,
        }
        asked = CHECK[self._language].format(
            question=self._question, results=results or "-", answer=self.draft.text
        )
        value = self._asked_for(asked, schema)
        return None if value is None else [str(one) for one in value["unsupported"]]

    def _asked_for(self, text: str, schema: dict[str, Any]) -> Any:
        """A value of this form from the model; None where it gives none."""
        config = self._agent.generation
        messages = [self._messages[0], Message("user", text)]
        try:
            return ask_for(_Asked(self._session.chat), messages, schema, config, attempts=2).value
        except (NoValidAnswer, ContextOverflow):
            return None


class _Asked:
    """A session as something that can be asked; see `yunque.apps.structured.Answering`."""

    def __init__(self, chat: Callable[[list[Message], GenerationConfig], Completion]) -> None:
        self._chat = chat

    def chat(self, messages: Any, config: GenerationConfig) -> Completion:
        """Answer a conversation."""
        return self._chat(list(messages), config)


def _with_ids(completion: Completion, place: int) -> tuple[ToolCall, ...]:
    """The calls, each with an id of its own: some models give none, or the same twice."""
    seen: set[str] = set()
    calls: list[ToolCall] = []
    for number, call in enumerate(completion.tool_calls):
        id = call.id if call.id and call.id not in seen else f"call_{place}_{number}"
        seen.add(id)
        calls.append(ToolCall(id, call.name, call.arguments))
    return tuple(calls)


def _sendable(call: ToolCall) -> ToolCall:
    """The call as it may be sent back to a model: servers refuse arguments that are no object."""
    try:
        fine = isinstance(json.loads(call.arguments), dict)
    except (ValueError, RecursionError):
        fine = False
    return call if fine else ToolCall(call.id, call.name, "{}")
