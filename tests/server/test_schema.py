"""What the OpenAPI document promises is what the server does, for requests that are made up from it."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

schemathesis = pytest.importorskip("schemathesis")
import jsonschema_rs  # noqa: E402
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from schemathesis import GenerationMode  # noqa: E402
from schemathesis.checks import CHECKS, load_all_checks  # noqa: E402

from yunque.server.app import create_app  # noqa: E402
from yunque.server.documents import OPERATIONS  # noqa: E402
from yunque.workspace import Workspace  # noqa: E402

load_all_checks()
EACH = settings(
    max_examples=20,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)
PATHS = [f"{each.method} {each.path}" for each in OPERATIONS]
PROMISES = ("status_code_conformance", "content_type_conformance", "response_schema_conformance")
LOCAL = {"host": "localhost"}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, tiny_model_files: Any) -> Iterator[FastAPI]:
    workspace = Workspace.open(tmp_path_factory.mktemp("schema") / "ws")
    workspace.put("model", "mini", tiny_model_files)
    made = create_app(workspace, keys_required=False)
    with TestClient(made, base_url="http://localhost"):
        yield made


@pytest.fixture(scope="module")
def document(app: FastAPI) -> Any:
    async def running(scope: Any, receive: Any, send: Any) -> None:
        # Its client would start and end the server for every request.
        if scope["type"] != "lifespan":
            await app(scope, receive, send)

    return schemathesis.openapi.from_asgi("/openapi.json", running, headers=LOCAL)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("operation", PATHS)
def test_no_request_makes_the_server_fail_or_answer_otherwise_than_described(
    document: Any, operation: str, mode: GenerationMode
) -> None:
    method, path = operation.split()
    described = document[path][method.upper()]
    if mode is GenerationMode.NEGATIVE and "requestBody" not in described.definition.raw:
        pytest.skip("there is nothing that could be wrong")
    statuses: list[int] = []

    @EACH
    @given(described.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        _tame(case.body)
        if isinstance((case.path_parameters or {}).get("model"), str):
            case.path_parameters["model"] = "mini"
        response = case.call(headers=LOCAL)
        statuses.append(response.status_code)
        assert response.status_code < 500, response.text
        if mode is GenerationMode.NEGATIVE:
            assert response.status_code >= 400, case.body
        case.validate_response(response, checks=[CHECKS.get_one(name) for name in PROMISES])

    ask()
    # The control: not everything is refused.
    assert 200 in statuses or mode is GenerationMode.NEGATIVE


def _tame(body: Any) -> None:
    """Name the model that there is, and ask for few texts."""
    if not isinstance(body, dict):
        return
    if isinstance(body.get("model"), str) and 1 <= len(body["model"]) <= 200:
        body["model"] = "mini"
    for name in ("n", "best_of"):
        if isinstance(body.get(name), int) and 2 < body[name] <= 128:
            body[name] = 2


def test_a_described_answer_is_what_comes(app: FastAPI, document: Any) -> None:
    """The control: what the checks above compare with is not true of everything."""
    body = {"model": "mini", "messages": [{"role": "user", "content": "¿Sí?"}], "max_tokens": 9}
    answer = TestClient(app, base_url="http://localhost").post("/v1/chat/completions", json=body).json()
    components = document.raw_schema["components"]
    validator = jsonschema_rs.validator_for(
        {"$ref": "#/components/schemas/ChatBody", "components": components}
    )
    assert validator.is_valid(answer)
    assert not validator.is_valid({**answer, "choices": "none"})
