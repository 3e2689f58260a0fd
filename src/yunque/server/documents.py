"""What the API is, as an OpenAPI document made of the very types that requests are checked with, and as a page."""

from dataclasses import dataclass
from html import escape
from typing import Any, Literal

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from yunque import __version__
from yunque.server.chat import ChatBody, ChatRequest
from yunque.server.completions import CompletionBody, CompletionRequest
from yunque.server.embeddings import EmbeddingBody, EmbeddingRequest
from yunque.server.responses import ResponseBody, ResponseRequest
from yunque.server.served import ModelBody
from yunque.server.tokens import DetokenizeBody, DetokenizeRequest, TokenizeBody, TokenizeRequest

_REFERENCE = "#/components/schemas/{model}"


class ErrorFields(TypedDict):
    """What went wrong, and in which parameter."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    """The answer to a request that failed."""

    error: ErrorFields


class ModelList(TypedDict):
    """The models and apps that are served."""

    object: Literal["list"]
    data: list[ModelBody]


class TokenizerInfo(TypedDict):
    """What a tokenizer_config.json would say."""

    tokenizer_class: str
    eos_token: str | None
    bos_token: str | None
    pad_token: str | None
    chat_template: str | None


class Health(TypedDict):
    """The server is up."""

    status: str


@dataclass(frozen=True)
class Operation:
    """A method of a path, with the types of what goes in and out."""

    method: str
    path: str
    summary: str
    answer: Any
    request: Any = None
    streams: bool = False
    parameters: tuple[dict[str, Any], ...] = ()


def _parameter(name: str, where: str, what: str) -> dict[str, Any]:
    schema = {"type": "string", "minLength": 1, "maxLength": 200}
    return {"name": name, "in": where, "required": where == "path", "schema": schema, "description": what}


OPERATIONS = (
    Operation("get", "/v1/models", "The models and apps that are served", ModelList),
    Operation(
        "get",
        "/v1/models/{model}",
        "One model or app",
        ModelBody,
        parameters=(_parameter("model", "path", "Its name"),),
    ),
    Operation(
        "post",
        "/v1/chat/completions",
        "A model or an app answers a conversation",
        ChatBody,
        ChatRequest,
        streams=True,
    ),
    Operation(
        "post",
        "/v1/completions",
        "A model goes on with texts, or scores them",
        CompletionBody,
        CompletionRequest,
        streams=True,
    ),
    Operation(
        "post",
        "/v1/responses",
        "A model answers; nothing is kept",
        ResponseBody,
        ResponseRequest,
        streams=True,
    ),
    Operation("post", "/v1/embeddings", "A vector for each text", EmbeddingBody, EmbeddingRequest),
    Operation("post", "/tokenize", "The tokens of a text or a conversation", TokenizeBody, TokenizeRequest),
    Operation("post", "/detokenize", "The text of tokens", DetokenizeBody, DetokenizeRequest),
    Operation(
        "get",
        "/tokenizer_info",
        "A model's special tokens and chat template",
        TokenizerInfo,
        parameters=(_parameter("model", "query", "Its name; without it, the only model there is"),),
    ),
    Operation("get", "/health", "Whether the server is up", Health),
    Operation("get", "/healthz", "Whether the server is alive", Health),
    Operation("get", "/readyz", "Whether requests are taken", Health),
    Operation("get", "/metrics", "Figures for Prometheus", None),
)


def describe() -> dict[str, Any]:
    """The OpenAPI document."""
    kinds = {kind for each in OPERATIONS for kind in (each.answer, each.request) if kind} | {ErrorBody}
    ordered = sorted(kinds, key=lambda kind: str(kind.__name__))
    _, schema = TypeAdapter.json_schemas(
        [(kind.__name__, "validation", TypeAdapter(kind)) for kind in ordered], ref_template=_REFERENCE
    )
    schemes = {"key": {"type": "http", "scheme": "bearer", "description": "Not needed on this machine."}}
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Yunque", "version": __version__, "description": "Models and apps of a workspace."},
        "paths": paths,
        "components": {"schemas": schema["$defs"], "securitySchemes": schemes},
        "security": [{"key": []}, {}],
    }


def _described(operation: Operation) -> dict[str, Any]:
    content: dict[str, Any] = (
        {"application/json": _reference(operation.answer)}
        if operation.answer
        else {"text/plain": {"schema": {"type": "string"}}}
    )
    if operation.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    failed = {"description": "What went wrong", "content": {"application/json": _reference(ErrorBody)}}
    described: dict[str, Any] = {
        "operationId": f"{operation.method}{operation.path}".replace("/", "_").translate({123: "", 125: ""}),
        "summary": operation.summary,
        "responses": {
            "200": {"description": operation.summary, "content": content},
            "4XX": failed,
            "5XX": failed,
        },
    }
    if operation.request:
        body = {"application/json": _reference(operation.request)}
        described["requestBody"] = {"required": True, "content": body}
    if operation.parameters:
        described["parameters"] = list(operation.parameters)
    return described


def _reference(kind: Any) -> dict[str, Any]:
    return {"schema": {"$ref": _REFERENCE.format(model=kind.__name__)}}


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #222 }
code, td:first-child { font-family: ui-monospace, monospace; font-size: 0.9em }
table { border-collapse: collapse; width: 100% }
td { border-top: 1px solid #ddd; padding: 0.3rem; vertical-align: top }
summary { cursor: pointer; padding: 0.4rem 0 } b { display: inline-block; min-width: 3.5rem }
@media (prefers-color-scheme: dark) { body { background: #161616; color: #ddd } td { border-color: #444 } }
"""


def page(document: dict[str, Any]) -> str:
    """The document as one page without any script: each operation with the fields that it takes."""
    schemas = document["components"]["schemas"]
    parts = [
        _as_html(method.upper(), path, operation, schemas)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Yunque API</title><style>{_STYLE}</style>'
        f"<h1>Yunque API {escape(__version__)}</h1>"
        '<p>The same for programs: <a href="/openapi.json">openapi.json</a></p>' + "".join(parts) + "</html>"
    )


def _as_html(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    rows = [
        (each["name"], _kind(each["schema"]), each["description"]) for each in operation.get("parameters", ())
    ]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body:
        schema = schemas[body["$ref"].rpartition("/")[2]]
        required = schema.get("required", ())
        rows += [
            (name, _kind(field), "required" if name in required else field.get("description", ""))
            for name, field in schema["properties"].items()
        ]
    cells = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    table = f"<table>{cells}</table>" if rows else ""
    return (
        f"<details><summary><b>{method}</b> <code>{escape(path)}</code> {escape(operation['summary'])}</summary>"
        f"{table}</details>"
    )


def _kind(schema: dict[str, Any]) -> str:
    """A type in few words."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "enum" in schema or "const" in schema:
        values = schema.get("enum") or [schema["const"]]
        return " | ".join("null" if value is None else str(value) for value in values)
    members = schema.get("anyOf") or schema.get("oneOf")
    if members:
        return " | ".join(dict.fromkeys(_kind(member) for member in members))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    limits = [
        f"{name} {schema[key]}" for key, name in (("minimum", "from"), ("maximum", "to")) if key in schema
    ]
    return " ".join([str(schema.get("type", "any")), *limits])
