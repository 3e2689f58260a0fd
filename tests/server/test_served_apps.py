"""Apps behind the API: conversations that are kept, agents that wait, budgets that are spent, chains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from yunque.apps.kept import add_app
from yunque.workspace import Workspace
from yunque.workspace.api_keys import Terms, create_api_key

_GUARDS = [{"check": "personal_data", "stages": ["input", "output"]}]
_SCRIPT = r"""
rules:
  - {when: "me llamo (\\w+)", reply: "Hola, \\1."}
  - {when: "pay", role: user, call: {pay: {amount: {number: "5"}}}}
  - {when: "paid", role: tool, reply: "It was paid."}
otherwise: "No lo sé."
"""
_TOOLS = "def pay(amount: float) -> str:\n    '''Pay.'''\n    return f'paid {amount}'\n"


@pytest.fixture
def put(workspace: Workspace, tmp_path: Path) -> Callable[..., None]:
    """Puts an app of these fields into the workspace, on a scripted model."""
    (tmp_path / "model.yaml").write_text(_SCRIPT, encoding="utf-8")
    (tmp_path / "tools.py").write_text(_TOOLS, encoding="utf-8")

    def put_app(**fields: Any) -> None:
        path = tmp_path / "app.yaml"
        values = {"name": "a", "model": "scripted:model.yaml", "guards": _GUARDS, **fields}
        path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
        add_app(workspace, path)

    return put_app


def _ask(client: openai.OpenAI, text: str, **more: Any) -> Any:
    return client.chat.completions.create(model="app/a", messages=[{"role": "user", "content": text}], **more)


_SAY = {"user": {"es": "{{ question }}", "en": "{{ question }}"}}


def test_a_conversation_goes_on_by_its_name(
    put: Callable[..., None], workspace: Workspace, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from yunque.llm.scripted import ScriptedModel

    seen: list[list[str]] = []
    reply = ScriptedModel._reply

    def watching(self: ScriptedModel, messages: Any, config: Any) -> Any:
        seen.append([message.content for message in messages])
        return reply(self, messages, config)

    monkeypatch.setattr(ScriptedModel, "_reply", watching)
    put(prompt=_SAY, memory={"days": 3})
    client = start(workspace).client()
    first = _ask(client, "Hola, me llamo Eva y vivo aquí").yunque
    conversation = first["details"]["conversation"]
    second = _ask(client, "¿Cómo me llaman en casa?", metadata={"conversation": conversation}).yunque
    assert second["details"]["conversation"] == conversation
    assert seen[-1] == ["Hola, me llamo Eva y vivo aquí", "Hola, Eva.", "¿Cómo me llaman en casa?"]
    # The control: without its name a conversation begins anew.
    third = _ask(client, "¿Cómo me llaman en casa?").yunque
    assert third["details"]["conversation"] != conversation and len(seen[-1]) == 1
    with pytest.raises(openai.BadRequestError, match="conversation"):
        _ask(client, "¿Y ahora?", metadata={"conversation": "20260101-0000000000000000"})


def test_a_call_that_waits_for_a_person_is_in_the_answer(
    put: Callable[..., None], workspace: Workspace, start: Any
) -> None:
    put(
        tools=[{"function": "tools.py:pay", "approval": True}],
        agent={"plan": False, "check": False},
        prompt={"system": {"en": "Pay what is asked."}},
    )
    answer = _ask(start(workspace).client(), "Please pay the bill of the house")
    details = answer.yunque["details"]
    assert details["status"] == "paused" and details["pending"]["tool"] == "pay"
    assert not answer.yunque["known"]
    # Who decides does it where the workspace is.
    from yunque.guard import open_app

    assert (
        open_app(workspace, "a").decide(details["run"], details["pending"]["call"], True).text
        == "It was paid."
    )


def test_a_budget_that_is_spent_is_429_for_its_key_alone(
    put: Callable[..., None], workspace: Workspace, start: Any
) -> None:
    from yunque.workspace.budgets import Budgets

    put(prompt=_SAY)
    with workspace.catalog.transaction() as connection:
        poor, secret = create_api_key(connection, "poor", Terms())
        _, other = create_api_key(connection, "other", Terms())
    Budgets.of(workspace.root).set(f"key/{poor.id}", tokens=1)
    running = start(workspace, keys_required=True)
    with pytest.raises(openai.RateLimitError) as caught:
        _ask(running.client(secret), "Hola, me llamo Eva y vivo aquí")
    assert caught.value.code == "insufficient_quota"
    assert _ask(running.client(other), "Hola, me llamo Eva y vivo aquí").choices


def test_a_chain_gives_its_value_as_data(
    put: Callable[..., None], workspace: Workspace, start: Any, tmp_path: Path
) -> None:
    (tmp_path / "f.py").write_text(
        "def count(text: str) -> dict[str, int]:\n    return {'words': len(text.split())}\n", encoding="utf-8"
    )
    put(steps=[{"name": "count", "function": "f.py:count"}])
    answer = _ask(start(workspace).client(), "uno dos tres años")
    assert answer.yunque["data"] == {"words": 4} and answer.yunque["details"]["run"]
