"""A real (tiny) model and a real app behind the server, asked through OpenAI's client."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

from yunque.apps.kept import add_app
from yunque.apps.retrieval.index import build_index
from yunque.data.dataset import write_dataset
from yunque.data.row import Row, Source, row_id
from yunque.llm import open_model
from yunque.tokenizer import Tokenizer
from yunque.workspace import Artifact, Workspace, read_calls

RULES = {
    "equipaje.md": "La maleta de cabina puede pesar como máximo 10 kg. Las medidas máximas son 55 x 40 x 20 cm.",
    "mascotas.md": "Los perros y gatos de hasta 8 kg viajan en la cabina en un transportín blando.",
    "cambios.md": "Cambiar la fecha del vuelo cuesta 35 euros por trayecto si quedan más de 24 horas.",
    "menores.md": "Los niños de 5 a 11 años pueden viajar solos con el servicio de acompañamiento.",
    "reembolsos.md": "El reembolso de un billete flexible se paga en siete días en la misma tarjeta.",
}
APP = {
    "name": "equipaje",
    "languages": ["es", "en"],
    "model": None,
    "knowledge": {"index": "rules"},
    "prompt": {"user": {"es": "{{ question }}"}},
    "guards": [{"check": "personal_data", "stages": ["input"]}],
}
QUESTION: Any = [{"role": "user", "content": "¿Cuánto puede pesar la maleta de cabina?"}]


@pytest.fixture
def running(
    tmp_path: Path, workspace: Workspace, put_tiny_model: Callable[..., Artifact], start: Callable[..., Any]
) -> Any:
    put_tiny_model(workspace)
    put_tiny_model(workspace)
    rows = [
        Row(row_id(file, text), text, "es", Source(file, "0" * 64, "line 1"), file)
        for file, text in RULES.items()
    ]
    write_dataset(workspace, "rules", {"rows": rows}, {}, [], {})
    build_index(workspace, "rules", ["rules"])
    file = tmp_path / "equipaje.yaml"
    file.write_text(yaml.safe_dump(APP, allow_unicode=True))
    add_app(workspace, file)
    return start(workspace)


def test_models_and_apps_are_listed(running: Any) -> None:
    assert [model.id for model in running.client().models.list()] == ["mini", "app/equipaje"]


def test_a_models_usage_is_counted_with_its_own_tokenizer(running: Any) -> None:
    answer = running.client().chat.completions.create(
        model="mini", messages=QUESTION, max_tokens=5, temperature=0
    )
    file = running.workspace.file(running.workspace.get("mini"), "tokenizer.json")
    ids, _ = Tokenizer.load(file).encode_chat([("user", QUESTION[0]["content"])], add_generation_prompt=True)
    assert answer.usage.prompt_tokens == len(ids)
    assert 1 <= answer.usage.completion_tokens <= 5


def test_the_server_and_the_library_write_the_same(running: Any) -> None:
    from yunque.generate.config import GenerationConfig

    model = open_model(running.workspace, "mini")
    expected = model.complete("Cada pasajero", GenerationConfig(max_new_tokens=12, temperature=0.8, seed=3))
    ask = {"model": "mini", "prompt": "Cada pasajero", "max_tokens": 12, "temperature": 0.8, "seed": 3}
    whole = running.client().completions.create(**ask)
    pieces = running.client().completions.create(**ask, stream=True)
    assert whole.choices[0].text == expected.text
    assert "".join(chunk.choices[0].text for chunk in pieces) == expected.text
    other = running.client().completions.create(**{**ask, "seed": 4})
    assert other.choices[0].text != expected.text


def test_too_long_a_conversation_is_told_by_its_code(running: Any) -> None:
    long: Any = [{"role": "user", "content": "maleta " * 300}]
    for extra in ({}, {"max_tokens": 5}):
        with pytest.raises(openai.BadRequestError) as caught:
            running.client().chat.completions.create(model="mini", messages=long, **extra)
        assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="tokens fit") as caught:
        running.client().chat.completions.create(model="mini", messages=QUESTION, max_tokens=1000)
    # Without a length asked for, the answer takes what room there is.
    answer = running.client().chat.completions.create(model="mini", messages=QUESTION, temperature=0)
    assert answer.usage.total_tokens <= 128


def test_a_model_is_opened_once(running: Any, opened_models: list[str]) -> None:
    body = {"model": "mini", "prompt": "Cada", "max_tokens": 1}
    threads = [
        threading.Thread(
            target=httpx.post, args=(f"{running.url}/completions",), kwargs={"json": body, "timeout": 20}
        )
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened_models == ["model/mini@1"]


def test_an_app_answers_with_readable_sources_and_citations_as_data(running: Any) -> None:
    answer = running.client().chat.completions.create(model="app/equipaje", messages=QUESTION)
    text = answer.choices[0].message.content
    assert "10 kg" in text and "[1]" in text
    assert text.rstrip().endswith("Fuentes:\n[1] equipaje.md, line 1")
    extra = answer.model_extra["yunque"]
    assert extra["citations"][0]["file"] == "equipaje.md"
    assert "10 kg" in extra["citations"][0]["quote"]
    assert extra["known"] and extra["extractive"] and extra["usage_counts"] == "words and punctuation marks"
    assert answer.usage.prompt_tokens == 9  # seven words and two question marks
    (call,) = read_calls(running.workspace.catalog.connection(), number=extra["call_id"])
    assert call.target == "app/equipaje@1"


def test_an_app_streams_the_same_text_and_its_data_at_the_end(running: Any) -> None:
    whole = running.client().chat.completions.create(model="equipaje", messages=QUESTION)
    chunks = list(
        running.client().chat.completions.create(model="app/equipaje@1", messages=QUESTION, stream=True)
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].model_extra["yunque"]["citations"] == whole.model_extra["yunque"]["citations"]
    assert all("yunque" not in (chunk.model_extra or {}) for chunk in chunks[:-1])


def test_an_app_says_what_it_does_not_know_and_answers_the_last_message_of_the_user(running: Any) -> None:
    turns: Any = [
        *QUESTION,
        {"role": "assistant", "content": "10 kg"},
        {"role": "user", "content": "¿Quién ganó la liga?"},
    ]
    answer = running.client().chat.completions.create(model="app/equipaje", messages=turns)
    assert "No lo sé" in answer.choices[0].message.content
    assert not answer.model_extra["yunque"]["known"]
    assert "Fuentes" not in answer.choices[0].message.content
    only_system: Any = [{"role": "system", "content": "Hola"}]
    for wrong in (only_system, [{"role": "user", "content": "  "}]):
        with pytest.raises(openai.BadRequestError):
            running.client().chat.completions.create(model="app/equipaje", messages=wrong)


@pytest.mark.parametrize("target", ["app/equipaje", "mini"])
def test_personal_data_in_a_question_reaches_no_log(running: Any, target: str) -> None:
    question: Any = [
        {
            "role": "user",
            "content": "Soy ana@example.com, 12345678Z: ¿cuánto puede pesar la maleta de cabina?",
        }
    ]
    running.client().chat.completions.create(model=target, messages=question, max_tokens=2)
    kept = json.dumps([call.as_dict() for call in read_calls(running.workspace.catalog.connection())])
    assert "ana@example.com" not in kept and "12345678Z" not in kept and "cabina" in kept
