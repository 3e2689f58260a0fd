"""Whatever is sent, the server never fails: it answers, or says what is wrong in OpenAI's shape."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import yunque.server.served
from yunque.llm import ScriptedModel
from yunque.server.app import create_app
from yunque.workspace import Workspace

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["user", "text", "mini", {"type": "text", "text": "hola"}, {"role": "user", "content": "a"}]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "include_usage"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
FIELDS = [
    *("messages", "prompt", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "stop"),
    *("seed", "stream", "stream_options", "n", "user", "logprobs", "tools", "response_format", "other"),
    *("input", "instructions", "text", "tool_choice", "logit_bias", "stop_token_ids", "structured_outputs"),
    *("truncate", "dimensions", "encoding_format", "tokens", "add_special_tokens", "model"),
]
PATHS = [
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/tokenize",
    "/detokenize",
]
ASKED = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "¿?"}]},
    "/v1/completions": {"prompt": "¿?"},
    "/v1/responses": {"input": "¿?"},
    "/v1/embeddings": {"input": "¿?"},
    "/tokenize": {"prompt": "¿?"},
    "/detokenize": {"tokens": [1]},
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    workspace = Workspace.open(Path(tmp_path_factory.mktemp("fuzz")) / "ws")
    workspace.put("model", "mini", {"config.json": b"{}"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yunque.server.served, "open_model", lambda *_: ScriptedModel(lambda _: "¡Hola!"))
        app = create_app(workspace, keys_required=False)
        with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as made:
            yield made


def check(response: Any) -> None:
    assert response.status_code in (200, 400, 404)
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@QUICK
@given(
    st.sampled_from(PATHS),
    st.dictionaries(st.sampled_from(FIELDS), json_values),
)
def test_any_values_in_known_fields(client: TestClient, path: str, fields: dict[str, Any]) -> None:
    body = {"model": "mini", **ASKED[path], **fields}
    check(client.post(path, content=json.dumps(body).encode()))


@QUICK
@given(st.sampled_from(PATHS), st.binary(max_size=64) | json_values.map(json.dumps))
def test_any_body(client: TestClient, path: str, body: bytes | str) -> None:
    check(client.post(path, content=body))


@QUICK
@given(st.text(min_size=1, max_size=40))
def test_any_model_name(client: TestClient, name: str) -> None:
    check(client.post("/v1/completions", json={"model": name, "prompt": "¿?"}))


def test_a_good_request_is_answered(client: TestClient) -> None:
    """The control: the checks above would pass on a server that refuses everything."""
    response = client.post("/v1/completions", json={"model": "mini", "prompt": "¿?"})
    assert (response.status_code, response.json()["choices"][0]["text"]) == (200, "¡Hola!")
