"""Real (tiny, random) models behind the server: forms of answers, tools, adapters on one base."""

import json
import re
import threading
from collections.abc import Callable
from typing import Any

import jsonschema_rs
import openai
import pytest
import torch

from yunque.model import load_model
from yunque.model.adapter_files import save_adapter
from yunque.model.lora import LoraSettings, add_lora
from yunque.workspace import Artifact, Workspace

QUESTION: Any = [{"role": "user", "content": "¿Sí?"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Ávila", "Soria"]}, "warm": {"type": "boolean"}},
    "required": ["city", "warm"],
    "additionalProperties": False,
}


@pytest.fixture
def running(workspace: Workspace, put_tiny_model: Callable[..., Artifact], start: Callable[..., Any]) -> Any:
    put_tiny_model(workspace)
    return start(workspace)


def ask(running: Any, **more: Any) -> Any:
    asked = {"model": "mini", "messages": QUESTION, "max_tokens": 60, "seed": 1, **more}
    return running.client().chat.completions.create(**asked)


def test_a_form_holds_for_a_model_that_knows_nothing(running: Any) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA}}
    for seed in range(5):
        text = ask(running, response_format=form, seed=seed).choices[0].message.content
        assert jsonschema_rs.is_valid(SCHEMA, json.loads(text)), text
    text = ask(running, extra_body={"guided_regex": "[0-9]{3}-[a-z]{2}"}).choices[0].message.content
    assert re.fullmatch("[0-9]{3}-[a-z]{2}", text)
    assert ask(running, extra_body={"guided_choice": ["sí", "no"]}).choices[0].message.content in ("sí", "no")
    told = running.client().responses.create(
        model="mini", input="¿Sí?", text={"format": {"type": "json_schema", "name": "w", "schema": SCHEMA}}
    )
    assert jsonschema_rs.is_valid(SCHEMA, json.loads(told.output_text))
    # The control: unbidden it writes no such thing.
    assert not re.fullmatch("[0-9]{3}-[a-z]{2}", ask(running).choices[0].message.content)


@pytest.mark.parametrize(
    "wrong",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "w", "schema": {"type": 7}}}},
        {"extra_body": {"guided_regex": "("}},
        {"extra_body": {"guided_regex": "(?=a)"}},
    ],
)
def test_a_form_that_cannot_be_is_400(running: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError):
        ask(running, **wrong)


def test_a_tool_that_must_be_called_is_called(running: Any) -> None:
    tool: Any = {"type": "function", "function": {"name": "w", "parameters": SCHEMA}}
    # The context of the tiny model has 128 tokens: less than what a tool is described with, so it is cut.
    answer = ask(
        running,
        max_tokens=110,
        tools=[tool],
        tool_choice="required",
        parallel_tool_calls=False,
        extra_body={"truncate": True},
    )
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, answer.choices[0].finish_reason) == ("w", "tool_calls")
    assert jsonschema_rs.is_valid(SCHEMA, json.loads(call.function.arguments))


def test_adapters_share_the_base_and_each_request_has_its_own(
    workspace: Workspace, running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = workspace.get("mini")
    for number, name in enumerate(("polite", "rude")):
        model = load_model(workspace.files(base), torch.float32)
        add_lora(model, LoraSettings(rank=4, alpha=32), torch.Generator().manual_seed(number))
        generator = torch.Generator().manual_seed(number)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(0, 0.5, generator=generator)
        workspace.put("adapter", name, save_adapter(model, base=base.ref), (base,))
    from yunque.generate.engine import Engine

    opened: list[str] = []

    def counting(cls: type[Engine], workspace: Workspace, ref: str, **settings: Any) -> Engine:
        opened.append(ref)
        return real(cls, workspace, ref, **settings)  # type: ignore[no-any-return]

    real = Engine.open.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(Engine, "open", classmethod(counting))
    names = ["mini", "adapter/polite", "adapter/rude"] * 3
    texts: dict[int, str] = {}

    def complete(number: int) -> None:
        asked = {"model": names[number], "prompt": "Cada", "max_tokens": 12, "temperature": 0}
        texts[number] = running.client().completions.create(**asked).choices[0].text

    threads = [threading.Thread(target=complete, args=(number,)) for number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert opened == ["model/mini@1"]
    by_name = {name: {text for number, text in texts.items() if names[number] == name} for name in names}
    assert all(len(each) == 1 for each in by_name.values())
    assert len(set.union(*by_name.values())) == 3
    # Merged into the base it says the same.
    from yunque.generate.config import GenerationConfig
    from yunque.llm.local import LocalModel

    alone = LocalModel("polite", real(Engine, workspace, "adapter/polite"))
    expected = alone.complete("Cada", GenerationConfig(max_new_tokens=12)).text
    assert by_name["adapter/polite"] == {expected}
