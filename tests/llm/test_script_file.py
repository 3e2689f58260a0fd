import json
from pathlib import Path

import pytest

from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.llm import Message
from yunque.llm.script_file import read_script
from yunque.llm.scripted import ScriptedModel

_SCRIPT = r"""
rules:
  - when: "pedido (\\d+)"
    role: user
    call: {look_up: {order: "\\1", fields: [estado, "\\1"], weight: {number: "\\1,5"}}}
  - when: enviado
    role: tool
    reply: "El pedido va de camino (\\0)."
  - when: "(adiós)(x)?"
    reply: "¡Hasta luego! \\2"
otherwise: No lo sé.
"""


@pytest.fixture
def model(tmp_path: Path) -> ScriptedModel:
    path = tmp_path / "guion.yaml"
    path.write_text(_SCRIPT, encoding="utf-8")
    return read_script(path, "scripted:guion")


def _said(model: ScriptedModel, *messages: Message) -> str:
    return model.chat(messages, GenerationConfig()).text


def test_the_first_rule_that_fits_replies(model: ScriptedModel) -> None:
    asked = Message("user", "¿Dónde está mi Pedido 123?")
    completion = model.chat([asked], GenerationConfig())
    assert [call.name for call in completion.tool_calls] == ["look_up"]
    assert json.loads(completion.tool_calls[0].arguments) == {
        "order": "123",
        "fields": ["estado", "123"],
        "weight": 123.5,
    }
    assert completion.finish_reason == "tool_calls"
    # The control: the rule is for the user's words, not for a tool's.
    assert _said(model, asked, Message("tool", "pedido 123: enviado")) == "El pedido va de camino (enviado)."
    assert _said(model, Message("user", "ADIÓS")) == "¡Hasta luego!"
    assert _said(model, Message("user", "¿Quién eres?")) == "No lo sé."


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rules: [{when: '(', reply: x}]\notherwise: y", "rules.0.when: is not a regular expression"),
        ("rules:\n  - when: x\notherwise: y", "needs a reply or a call"),
        ("rules: []", "otherwise: is missing"),
    ],
)
def test_a_wrong_script_is_told_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"s\.yaml:\d") as caught:
        read_script(path, "s")
    assert told in str(caught.value)
