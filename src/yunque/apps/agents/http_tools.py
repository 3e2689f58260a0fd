"""The operations of an OpenAPI document as tools: only those that are listed, on one host only.

Redirects are not followed, answers are read up to a size, and everything that is not GET needs a person's approval.
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from yunque.apps.agents.tools import AgentTool, CallContext, ToolError
from yunque.errors import UserError

_METHODS = ("get", "put", "post", "delete", "patch", "head")
_MOST_REFERENCES = 50
_BODY = "body"


@dataclass(frozen=True)
class _Operation:
    name: str
    method: str
    path: str
    places: Mapping[str, str]  # parameter -> path, query or header
    parameters: dict[str, Any]
    description: str


def openapi_tools(
    document: Mapping[str, Any] | Path,
    operations: Sequence[str],
    base_url: str | None = None,
    key_env: str | None = None,
    personal_data: bool = False,
    timeout: float = 20.0,
    most_bytes: int = 200_000,
    transport: Any = None,
) -> list[AgentTool]:
    """A tool for each of the `operations` (their operationId, or `GET /path`) of an OpenAPI 3 document.

    `base_url` is the only place that is called (the document's first server, if none is given); `key_env` names the
    environment variable whose value is sent as a bearer token. Arguments hold marks instead of personal data, unless
    `personal_data` says that the service may have it. Raises UserError for a document or operation that is none.
    """
    where = str(document) if isinstance(document, Path) else "the OpenAPI document"
    read = _document(document) if isinstance(document, Path) else document
    base = _base(read, base_url, where)
    if not operations:
        raise UserError(
            f"{where}: list the operations that may be called ({', '.join(_names(read)) or 'it has none'})"
        )
    return [
        _tool(_operation(read, wanted, where), base, key_env, personal_data, timeout, most_bytes, transport)
        for wanted in operations
    ]


def _tool(
    operation: _Operation,
    base: str,
    key_env: str | None,
    personal_data: bool,
    timeout: float,
    most_bytes: int,
    transport: Any,
) -> AgentTool:
    reads = operation.method in ("get", "head")

    def run(arguments: dict[str, Any], call: CallContext) -> Any:
        import httpx

        headers = {"Accept": "application/json, text/*;q=0.9"}
        if key_env and (key := os.environ.get(key_env)):
            headers["Authorization"] = f"Bearer {key}"
        if not reads:
            headers["Idempotency-Key"] = call.key
        url, query, named = _filled(operation, base, arguments)
        try:
            # A proxy of the environment is no part of the one host that may be called.
            with (
                httpx.Client(
                    timeout=min(timeout, call.seconds), trust_env=False, transport=transport
                ) as client,
                client.stream(
                    operation.method.upper(),
                    url,
                    params=query,
                    headers={**named, **headers},
                    json=arguments.get(_BODY),
                ) as response,
            ):
                return _answer(response, most_bytes)
        except httpx.HTTPError as error:
            raise ToolError(f"the service could not be asked ({type(error).__name__})") from None

    return AgentTool(
        operation.name,
        operation.description,
        operation.parameters,
        run,
        approval=not reads,
        effect="none" if reads else "once",
        local=personal_data,
        timeout=timeout + 5,
    )


def _filled(
    operation: _Operation, base: str, arguments: Mapping[str, Any]
) -> tuple[str, dict[str, Any], dict[str, str]]:
    """The address, the query and the headers of a call; raises ToolError for a value that would lead elsewhere."""
    path, query, headers = operation.path, dict[str, Any](), dict[str, str]()
    for name, place in operation.places.items():
        if name not in arguments:
            continue
        value = arguments[name]
        text = json.dumps(value) if isinstance(value, bool | dict) else str(value)
        if place == "path":
            if text in ("", ".", ".."):
                raise ToolError(f"{name}: {text!r} cannot be part of an address")
            path = path.replace(f"{{{name}}}", quote(text, safe=""))
        elif place == "query":
            query[name] = [str(one) for one in value] if isinstance(value, list) else text
        else:
            if re.search(r"[^\x20-\x7e]", text):
                raise ToolError(f"{name}: a header has plain letters only")
            headers[name] = text
    return base + path, query, headers


def _answer(response: Any, most_bytes: int) -> Any:
    content = bytearray()
    for part in response.iter_bytes():
        content += part
        if len(content) > most_bytes:
            raise ToolError(f"the answer is longer than {most_bytes} bytes: ask for less")
    text = content.decode(response.charset_encoding or "utf-8", errors="replace")
    if response.status_code >= 300:
        raise ToolError(f"the service answered {response.status_code}: {text[:300]}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _document(path: Path) -> Mapping[str, Any]:
    from yunque.configuration import read_yaml

    # JSON is YAML too.
    return read_yaml(path)


def _base(document: Mapping[str, Any], base_url: str | None, where: str) -> str:
    servers = document.get("servers") or [{}]
    base = base_url or (servers[0].get("url") if isinstance(servers[0], Mapping) else None) or ""
    parts = urlsplit(base)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"{where}: names no server by its whole address: give base_url (https://HOST/...)")
    if parts.username is not None or parts.query or parts.fragment:
        raise UserError(
            f"{where}: base_url holds no password, '?' or '#': put the key in a variable (key_env)"
        )
    return base.rstrip("/")


def _operation(document: Mapping[str, Any], wanted: str, where: str) -> _Operation:
    for name, method, path, item, described in _all(document):
        if wanted in (name, f"{method.upper()} {path}"):
            return _read(document, name, method, path, item, described, f"{where}: {wanted}")
    raise UserError(f"{where}: has no operation {wanted!r} (it has: {', '.join(_names(document))})")


def _all(document: Mapping[str, Any]) -> list[tuple[str, str, str, Mapping[str, Any], Mapping[str, Any]]]:
    found = []
    paths = document.get("paths")
    for path, item in paths.items() if isinstance(paths, Mapping) else ():
        for method, described in item.items() if isinstance(item, Mapping) else ():
            if method in _METHODS and isinstance(described, Mapping):
                name = str(described.get("operationId") or f"{method}_{path}")
                name = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_")[:64]
                found.append((name, method, str(path), item, described))
    return found


def _names(document: Mapping[str, Any]) -> list[str]:
    return [name for name, *_ in _all(document)]


def _read(
    document: Mapping[str, Any],
    name: str,
    method: str,
    path: str,
    item: Mapping[str, Any],
    described: Mapping[str, Any],
    where: str,
) -> _Operation:
    resolve = _resolver(document, where)
    places: dict[str, str] = {}
    properties: dict[str, Any] = {}
    required: list[str] = []
    for parameter in [*(item.get("parameters") or []), *(described.get("parameters") or [])]:
        one = resolve(parameter)
        key, place = str(one.get("name")), str(one.get("in"))
        if place not in ("path", "query", "header"):
            continue
        about = {"description": one["description"]} if one.get("description") else {}
        properties[key] = {**resolve(one.get("schema") or {"type": "string"}), **about}
        places[key] = place
        if (one.get("required") or place == "path") and key not in required:
            required.append(key)
    body = resolve(described.get("requestBody") or {})
    if content := (body.get("content") or {}):
        schema = (content.get("application/json") or {}).get("schema")
        if schema is None:
            raise UserError(f"{where}: takes a body that is not JSON, which cannot be called")
        properties[_BODY] = resolve(schema)
        if body.get("required"):
            required.append(_BODY)
    told = " ".join(str(described.get(key) or "") for key in ("summary", "description")).strip()
    parameters = {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
    return _Operation(
        name, method, path, places, parameters, " ".join((told or f"{method.upper()} {path}").split())[:500]
    )


def _resolver(document: Mapping[str, Any], where: str) -> Callable[[Any], Any]:
    """Puts what `#/...` refers to in the place of the reference. Other documents are not opened."""

    def resolve(value: Any, depth: int = 0) -> Any:
        if depth > _MOST_REFERENCES:
            raise UserError(f"{where}: refers to itself without end")
        if isinstance(value, Mapping):
            reference = value.get("$ref")
            if isinstance(reference, str):
                return resolve(_pointed(document, reference, where), depth + 1)
            return {str(key): resolve(inner, depth + 1) for key, inner in value.items()}
        return [resolve(inner, depth + 1) for inner in value] if isinstance(value, list) else value

    return resolve


def _pointed(document: Mapping[str, Any], reference: str, where: str) -> Any:
    if not reference.startswith("#/"):
        raise UserError(f"{where}: refers to {reference!r}; only parts of the same document are read")
    found: Any = document
    for part in reference[2:].split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, Mapping) or key not in found:
            raise UserError(f"{where}: refers to {reference!r}, which is not there")
        found = found[key]
    return found
