"""Vectors of texts, and the names of models, from providers that have them."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from yunque.errors import UserError
from yunque.llm.face import Embeddings, Prompt, Usage
from yunque.llm.prices import cost_of
from yunque.llm.wire import as_prompt_text, count

if TYPE_CHECKING:
    from yunque.llm.remote import RemoteModel

# What the providers take in one request: Gemini 100, OpenAI 2048 (but no more tokens than 300 000).
_MOST_TEXTS = {"gemini": 100, "openai": 256}

# Marks of begin and end, and words that a model wants before a text.
_MOST_ADDED = 64


def embed(model: "RemoteModel", texts: Sequence[Prompt]) -> Embeddings:
    """A vector of length 1 for each text, asked for in groups; raises UserError where the API has none."""
    api = model.at.provider.wire if model.at.provider else "openai"
    if api == "anthropic":
        raise UserError(f"{model.name}: Anthropic has no vectors of texts: use an embedder of the workspace")
    for number, text in enumerate(texts):
        if not text:
            raise UserError(f"input[{number}] is empty: there is nothing to embed")
    # A request holds texts or tokens, not both.
    groups = [[n for n, text in enumerate(texts) if isinstance(text, str) is kind] for kind in (True, False)]
    vectors: list[list[float]] = [[] for _ in texts]
    most, tokens = _MOST_TEXTS[api], 0
    for rows in (group[first : first + most] for group in groups for first in range(0, len(group), most)):
        told, read = (_gemini if api == "gemini" else _openai)(model, [texts[row] for row in rows])
        if len(told) != len(rows):
            raise model.unavailable(f"gave {len(told)} vectors for {len(rows)} texts", again=True)
        for row, vector in zip(rows, told, strict=True):
            vectors[row] = _of_length_one(vector)
        tokens += read
    if len({len(vector) for vector in vectors}) > 1:
        raise model.unavailable("gave vectors of different lengths")
    return Embeddings(vectors, tokens, cost_of(model.at, Usage(tokens, 0)))


def _openai(model: "RemoteModel", texts: Sequence[Prompt]) -> tuple[list[list[float]], int]:
    asked = [text if isinstance(text, str) else list(text) for text in texts]
    body = model.ask("/embeddings", {"model": model.at.model, "input": asked, "encoding_format": "float"})
    try:
        rows = sorted(body["data"], key=lambda row: row["index"])
        if [row["index"] for row in rows] != list(range(len(rows))):
            raise ValueError("which text is which is not told")
        vectors = [_vector(row["embedding"]) for row in rows]
    except (KeyError, TypeError, ValueError):
        raise model.unavailable("answered JSON that holds no vectors", again=True) from None
    usage = body.get("usage")
    return vectors, _tokens_read(usage.get("prompt_tokens") if isinstance(usage, dict) else None, texts)


def _gemini(model: "RemoteModel", texts: Sequence[Prompt]) -> tuple[list[list[float]], int]:
    name = f"models/{model.at.model}"
    asked = [
        {"model": name, "content": {"parts": [{"text": as_prompt_text(text, model.name)}]}} for text in texts
    ]
    body = model.ask(f"/{name}:batchEmbedContents", {"requests": asked})
    try:
        vectors = [_vector(row["values"]) for row in body["embeddings"]]
        usage = body.get("usageMetadata")
    except (KeyError, TypeError, ValueError, AttributeError):
        raise model.unavailable("answered JSON that holds no vectors", again=True) from None
    return vectors, _tokens_read(usage.get("promptTokenCount") if isinstance(usage, dict) else None, texts)


def _vector(values: Any) -> list[float]:
    vector = [float(value) for value in values]
    if not vector or not all(map(math.isfinite, vector)):
        raise ValueError("no vector")
    return vector


def _of_length_one(vector: list[float]) -> list[float]:
    length = math.hypot(*vector)
    return [value / length for value in vector] if length else vector


def _tokens_read(told: object, texts: Sequence[Prompt]) -> int:
    """What was told, if it can be true: a token has a byte at least, and each text gets a few of its own."""
    read = count(told)
    sizes = [len(text.encode(errors="replace")) if isinstance(text, str) else len(text) for text in texts]
    return read if read and read <= sum(sizes) + _MOST_ADDED * len(texts) else _estimated(texts)


def _estimated(texts: Sequence[Prompt]) -> int:
    sizes = (len(text.encode(errors="replace")) / 4 if isinstance(text, str) else len(text) for text in texts)
    return sum(map(math.ceil, sizes))


def models(model: "RemoteModel") -> list[str]:
    """What a provider calls the models that it has; at most the first 1000."""
    api = model.at.provider.wire if model.at.provider else "openai"
    body = model.ask(
        {"gemini": "/models?pageSize=1000", "anthropic": "/models?limit=1000"}.get(api, "/models"), None
    )
    try:
        if api == "gemini":
            return [row["name"].removeprefix("models/") for row in body["models"]]
        return [str(row["id"]) for row in body["data"]]
    except (KeyError, TypeError, AttributeError):
        raise model.unavailable("answered JSON that is no list of models", again=True) from None
