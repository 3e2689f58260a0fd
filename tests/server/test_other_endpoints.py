"""/v1/embeddings, /v1/responses, /tokenize and its kin, through OpenAI's client and by hand."""

import base64
import json
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
import torch
from plain_engine import plain

import yunque.server.served
from yunque.generate.scheduler import Unwanted
from yunque.llm import open_model
from yunque.llm.local import LocalModel
from yunque.workspace import Artifact, Workspace
from yunque.workspace.api_keys import Terms, create_api_key, key_usage


@pytest.fixture
def model(workspace: Workspace, put_tiny_model: Callable[..., Artifact]) -> LocalModel:
    put_tiny_model(workspace)
    return plain(open_model(workspace, "mini"), "Sí, señora 👩.")


@pytest.fixture
def running(
    model: LocalModel, workspace: Workspace, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Any:
    monkeypatch.setattr(yunque.server.served, "open_model", lambda *_: model)
    return start(workspace)


def test_a_decoders_vectors_are_the_mean_of_its_last_hidden_ones(running: Any, model: LocalModel) -> None:
    texts = ["Cada pasajero", "Each", "¿Sí?"]
    answer = running.client().embeddings.create(model="mini", input=texts)
    network, tokenizer = model.engine.model, model.tokenizer
    assert [item.index for item in answer.data] == [0, 1, 2]
    for item, text in zip(answer.data, texts, strict=True):
        with torch.inference_mode():
            mean = network.hidden(torch.tensor([tokenizer.encode_prompt(text)]))[0].mean(0)
        torch.testing.assert_close(torch.tensor(item.embedding), mean / mean.norm(), atol=1e-5, rtol=1e-4)
        # The control: it is not the vector of the last token.
        assert not torch.allclose(torch.tensor(item.embedding), mean, atol=1e-3)
    count = sum(len(tokenizer.encode_prompt(text)) for text in texts)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (count, count)


def test_vectors_in_base64_and_of_tokens_and_cut_short_are_the_same(running: Any, model: LocalModel) -> None:
    client = running.client()
    plainly = client.embeddings.create(model="mini", input="Cada", encoding_format="float").data[0].embedding
    body = {"model": "mini", "input": "Cada", "encoding_format": "base64"}
    data = httpx.post(f"{running.url}/embeddings", json=body).json()["data"][0]["embedding"]
    packed = base64.b64decode(data)
    assert struct.unpack(f"<{len(plainly)}f", packed) == pytest.approx(plainly, abs=1e-7)
    ids = model.tokenizer.encode_prompt("Cada")
    for given in (ids, [ids]):
        assert client.embeddings.create(model="mini", input=given).data[0].embedding == pytest.approx(plainly)
    short = client.embeddings.create(model="mini", input="Cada", dimensions=8).data[0].embedding
    norm = sum(value * value for value in plainly[:8]) ** 0.5
    assert short == pytest.approx([value / norm for value in plainly[:8]], abs=1e-6)
    for wrong, words in (
        ({"dimensions": 999}, "have 32"),
        ({"input": "x " * 500}, "at most 128"),
        ({"input": []}, "1"),
    ):
        with pytest.raises(openai.BadRequestError, match=words):
            client.embeddings.create(**{"model": "mini", "input": "Cada", **wrong})


def test_vectors_are_made_in_turns_and_only_while_they_are_wanted(
    running: Any, model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[int] = []
    pauses = [0.0]
    alone = model.engine.alone

    @contextmanager
    def counting() -> Iterator[Any]:
        turns.append(1)
        time.sleep(pauses[0])
        with alone() as network:
            yield network

    monkeypatch.setattr(model.engine, "alone", counting)
    texts = [model.tokenizer.encode_prompt("Cada pasajero " * 4) for _ in range(200)]
    made = model.embed(texts)
    assert len(turns) > 5 and made.vectors[0] == pytest.approx(model.embed(texts[:1]).vectors[0], abs=1e-5)
    turns.clear()
    with pytest.raises(Unwanted):
        model.embed(texts, lambda: len(turns) < 2)
    assert len(turns) == 2
    # A client that goes away ends it; the control: one that stays gets all.
    turns.clear()
    everything = len(running.client().embeddings.create(model="mini", input=texts).data)
    whole = len(turns)
    turns.clear()
    pauses[0] = 0.1
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{running.url}/embeddings", json={"model": "mini", "input": texts}, timeout=0.25)
    time.sleep(1.0)
    assert everything == 200 and 0 < len(turns) <= min(5, whole - 1)


def test_vectors_are_paid_for_before_they_are_made(
    model: LocalModel, workspace: Workspace, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yunque.server.served, "open_model", lambda *_: model)
    with workspace.catalog.transaction() as connection:
        key, secret = create_api_key(connection, "k", Terms(tokens_a_day=20))
    client = start(workspace, keys_required=True).client(secret)
    count = client.embeddings.create(model="mini", input="Cada").usage.prompt_tokens
    assert key_usage(workspace.catalog.connection(), key.id).tokens == count < 20
    with pytest.raises(openai.RateLimitError, match="are left"):
        client.embeddings.create(model="mini", input=["Cada pasajero puede llevar"] * 10)
    assert key_usage(workspace.catalog.connection(), key.id).tokens == count


def test_an_encoder_gives_its_own_vectors_and_writes_nothing(
    workspace: Workspace, start: Callable[..., Any], tiny_encoder_files: Mapping[str, bytes]
) -> None:
    from yunque.llm.embedding import LocalEncoder

    workspace.put("model", "reader", tiny_encoder_files)
    client = start(workspace).client()
    answer = client.embeddings.create(model="reader", input=["hola mundo", "hola"])
    encoder = LocalEncoder.open(workspace, "reader")
    ids = encoder.tokenizer.encode_prompt("hola mundo")
    expected = encoder.model.embed(torch.tensor([ids]))[0].tolist()
    assert answer.data[0].embedding == pytest.approx(expected, abs=1e-5)
    assert answer.data[1].embedding != pytest.approx(expected, abs=1e-3)
    with pytest.raises(openai.BadRequestError, match="use it with /v1/embeddings"):
        client.completions.create(model="reader", prompt="hola")


def test_a_response_has_the_text_and_the_usage(running: Any) -> None:
    answer = running.client().responses.create(
        model="mini", input="¿Sí?", instructions="Breve.", max_output_tokens=40, temperature=0, store=False
    )
    assert (answer.output_text, answer.status, answer.store) == ("Sí, señora 👩.", "completed", False)
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    cut = running.client().responses.create(model="mini", input="¿Sí?", max_output_tokens=2)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_a_stream_of_a_response_has_the_events_of_openai(running: Any) -> None:
    events = list(
        running.client().responses.create(model="mini", input="¿Sí?", stream=True, max_output_tokens=40)
    )
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    assert (
        "".join(event.delta for event in events[4:-4]) == events[-1].response.output_text == "Sí, señora 👩."
    )
    with running.client().responses.stream(model="mini", input="¿Sí?", max_output_tokens=40) as stream:
        assert stream.get_final_response().output_text == "Sí, señora 👩."


def test_a_response_goes_on_with_messages_and_tells_log_probabilities(
    running: Any, model: LocalModel
) -> None:
    client = running.client()
    first = client.responses.create(model="mini", input="¿Sí?", max_output_tokens=9)
    turns: Any = [{"role": "user", "content": "¿Sí?"}, *first.output, {"role": "user", "content": "¿No?"}]
    client.responses.create(model="mini", input=turns, max_output_tokens=9)
    asked = [("user", "¿Sí?"), ("assistant", first.output_text), ("user", "¿No?")]
    assert model.engine.prompts[-1] == model.tokenizer.encode_chat(asked, True)[0]  # type: ignore[attr-defined]
    told = client.responses.create(
        model="mini",
        input="¿Sí?",
        include=["message.output_text.logprobs"],
        top_logprobs=2,
        max_output_tokens=40,
    )
    logprobs = told.output[0].content[0].logprobs
    assert b"".join(bytes(each.bytes) for each in logprobs).decode() == told.output_text
    assert all(len(each.top_logprobs) == 2 for each in logprobs)


@pytest.mark.parametrize(
    "stateful",
    [
        {"store": True},
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"background": True},
        {"tools": [{"type": "web_search"}]},
        {"include": ["reasoning.encrypted_content"]},
        {"input": [{"type": "item_reference", "id": "x"}]},
    ],
)
def test_what_would_need_a_kept_response_is_400(running: Any, stateful: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError):
        running.client().responses.create(**{"model": "mini", "input": "¿Sí?", **stateful})
    with pytest.raises(openai.NotFoundError):
        running.client().responses.retrieve("resp_1")


def test_tokens_there_and_back(running: Any, model: LocalModel) -> None:
    text = "¿Cuántas maletas? <|end|>"
    for path in ("/tokenize", "/v1/tokenize"):
        asked = {"model": "mini", "prompt": text, "add_special_tokens": False, "return_token_strs": True}
        told = httpx.post(running.root + path, json=asked).json()
        assert told["tokens"] == model.tokenizer.encode(text)
        assert (told["count"], told["max_model_len"]) == (len(told["tokens"]), 128)
        assert len(told["token_strs"]) == told["count"]
    back = httpx.post(f"{running.root}/detokenize", json={"tokens": told["tokens"]}).json()
    assert back == {"prompt": text}
    asked = {"messages": [{"role": "user", "content": "¿Sí?"}]}
    chat = httpx.post(f"{running.root}/tokenize", json=asked).json()["tokens"]
    assert chat == model.tokenizer.encode_chat([("user", "¿Sí?")], True)[0]
    shown = httpx.post(f"{running.root}/detokenize", json={"tokens": chat}).json()["prompt"]
    assert shown == "<|user|>¿Sí?<|assistant|>"


def test_a_harness_finds_the_end_token_by_its_name(running: Any, model: LocalModel) -> None:
    """As lm_eval's remote tokenizer looks for it: no model is named, and the name is asked for alone."""
    info = httpx.get(f"{running.root}/tokenizer_info").json()
    assert info["tokenizer_class"] and info["eos_token"] == "<|end|>" and info["bos_token"] == "<|end|>"
    asked = {"prompt": info["eos_token"], "add_special_tokens": False}
    assert httpx.post(f"{running.root}/tokenize", json=asked).json()["tokens"] == [model.tokenizer.end_id]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/tokenize", {}, 400),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, 400),
        ("/tokenize", {"model": "nada", "prompt": "a"}, 404),
        ("/detokenize", {"tokens": [10**9]}, 400),
        ("/detokenize", {"tokens": [299_999]}, 400),
        ("/detokenize", {"tokens": "a"}, 400),
        ("/v1/embeddings", {"model": "nada", "input": "a"}, 404),
        ("/v1/embeddings", {"model": "mini"}, 400),
        ("/v1/responses", {"model": "nada", "input": "a"}, 404),
    ],
)
def test_wrong_requests_have_the_shape_of_an_error(running: Any, path: str, body: Any, status: int) -> None:
    response = httpx.post(running.root + path, json=body)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_the_documents_need_nothing_from_elsewhere(running: Any) -> None:
    page = httpx.get(f"{running.root}/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "/v1/chat/completions" in page.text and "response_format" in page.text
    assert "<script" not in page.text and "http://" not in page.text and "https://" not in page.text
    document = httpx.get(f"{running.root}/openapi.json").json()
    assert document["openapi"].startswith("3.1") and "/v1/responses" in document["paths"]
    assert "$defs" not in json.dumps(document)
