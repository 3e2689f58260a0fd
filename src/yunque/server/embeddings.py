"""`/v1/embeddings`: a vector for each text."""

import base64
import struct
from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from typing_extensions import TypedDict

from yunque.llm import Embeddings, Prompt
from yunque.server.completions import Prompts, as_list
from yunque.server.parsing import refuse
from yunque.server.requests import Part, Unused


class EmbeddingRequest(Part):
    """The body of /v1/embeddings. A text may be given as its tokens; `dimensions` keeps the first ones of a vector,
    brought to length 1 again."""

    model: str = Field(min_length=1, max_length=200)
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1, le=100_000)
    user: Unused = None

    def texts(self) -> list[Prompt]:
        """All the texts."""
        return as_list(self.input)


class EmbeddingUsage(TypedDict):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingItem(TypedDict):
    """The vector of one text: numbers, or their 32-bit floats in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingBody(TypedDict):
    """The answer of /v1/embeddings."""

    object: Literal["list"]
    data: list[EmbeddingItem]
    model: str
    usage: EmbeddingUsage


def embedding_body(asked: EmbeddingRequest, made: Embeddings) -> EmbeddingBody:
    """The vectors as they were asked for."""
    encode = _base64 if asked.encoding_format == "base64" else list
    vectors = [_cut(vector, asked.dimensions) for vector in made.vectors]
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": encode(vector)}
            for index, vector in enumerate(vectors)
        ],
        "model": asked.model,
        "usage": {"prompt_tokens": made.prompt_tokens, "total_tokens": made.prompt_tokens},
    }


def _cut(vector: Sequence[float], dimensions: int | None) -> list[float]:
    if dimensions is None:
        return list(vector)
    if dimensions > len(vector):
        refuse(f"dimensions: the vectors of this model have {len(vector)}", "dimensions")
    cut = vector[:dimensions]
    length = sum(value * value for value in cut) ** 0.5
    return [value / length for value in cut] if length else list(cut)


def _base64(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
