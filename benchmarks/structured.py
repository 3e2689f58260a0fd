"""Answers of a model that knows nothing, under schemas: how many are valid, and what the grammar costs.

    python benchmarks/structured.py [--texts 1000] [--tokens 200] [SCHEMA...]

The model is tiny and its weights are random, its temperature is 1, and its vocabulary has some 300 tokens, most of
them single bytes: nothing but the grammar leads it to valid JSON, and every text that it may write at length it does.
What it wrote is read by Python's json and checked by jsonschema-rs, formats too. `closed` counts the texts that would
not have ended by themselves: the last token that they might have was used. Times are per token, of one thread, and
without the model's own.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from yunque.generate.config import GenerationConfig, JsonFormat
from yunque.generate.grammar_compiling import grammar_of, validate
from yunque.generate.sampler import Sampler
from yunque.generate.state import open_state
from yunque.model import Llama, LlamaConfig
from yunque.tokenizer import Tokenizer

_BATCH = 50


def _object(properties: dict[str, Any], required: Sequence[str] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else list(required),
        **more,
    }


_STRING, _INTEGER = {"type": "string"}, {"type": "integer"}
_CLOSED = {"additionalProperties": False}


def _format(name: str) -> dict[str, str]:
    return {"type": "string", "format": name}


SCHEMAS: dict[str, dict[str, Any]] = {
    "flat": _object({"name": _STRING, "age": {"type": "integer", "minimum": 0, "maximum": 120}}, **_CLOSED),
    "optional": _object({"a": _STRING, "b": {"type": "number"}, "c": {"type": "boolean"}}, ["b"], **_CLOSED),
    "nested": _object(
        {
            "persona": _object(
                {
                    "nombre": {"type": "string", "minLength": 1},
                    "dirección": _object({"calle": _STRING, "número": _INTEGER}),
                }
            )
        }
    ),
    "spanish": _object(
        {
            "año": {"type": "integer", "minimum": 1900, "maximum": 2100},
            "señal": {"enum": ["sí", "no", "quizás"]},
            "«cita»": {"type": ["string", "null"]},
        },
        **_CLOSED,
    ),
    "array": {
        "type": "array",
        "items": {"type": "integer", "minimum": -5, "maximum": 5},
        "minItems": 3,
        "maxItems": 6,
    },
    "array of objects": _object(
        {
            "items": {
                "type": "array",
                "minItems": 2,
                "maxItems": 5,
                "items": _object(
                    {
                        "id": _INTEGER,
                        "tags": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 3},
                    },
                    **_CLOSED,
                ),
            }
        },
        **_CLOSED,
    ),
    "enum": {"enum": ["rojo", "verde", 3, None, {"a": [1, 2]}]},
    "const": _object({"kind": {"const": 'café "solo"'}, "n": {"const": 7}}),
    "any of": {
        "anyOf": [
            _object(
                {"kind": {"const": "circle"}, "radius": {"type": "number", "exclusiveMinimum": 0}}, **_CLOSED
            ),
            _object({"kind": {"const": "square"}, "side": {"type": "integer", "minimum": 1}}, **_CLOSED),
        ]
    },
    "tree": {
        "$ref": "#/$defs/tree",
        "$defs": {
            "tree": _object(
                {"value": _INTEGER, "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}}},
                **_CLOSED,
            )
        },
    },
    "linked list": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": _object(
                {"v": _STRING, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}}, **_CLOSED
            )
        },
    },
    "patterns": _object(
        {
            "plate": {"type": "string", "pattern": "^[0-9]{4}-[A-Z]{3}$"},
            "code": {"type": "string", "pattern": "^(ES|MX|AR)[0-9]{2,6}$"},
            "mail": {"type": "string", "pattern": r'^[^@ "]+@[^@ "]+\.com$'},
        },
        **_CLOSED,
    ),
    "formats": _object(
        {name: _format(name) for name in ("date", "date-time", "uuid", "email", "ipv4")}, **_CLOSED
    ),
    "more formats": {
        "type": "array",
        "prefixItems": [_format(name) for name in ("time", "hostname", "ipv6", "uri", "duration")],
        "items": False,
        "minItems": 5,
    },
    "numbers": _object(
        {
            "price": {"type": "number", "multipleOf": 0.01, "minimum": 0, "maximum": 9999},
            "ratio": {"type": "number", "minimum": -1, "maximum": 1},
            "seven": {"type": "integer", "multipleOf": 7, "minimum": 10, "maximum": 1000},
            "free": {"type": "number"},
        },
        **_CLOSED,
    ),
    "map": _object({"total": _INTEGER}, additionalProperties=_INTEGER),
    "pattern properties": {
        "type": "object",
        "patternProperties": {"^x-[a-z]+$": {"type": "boolean"}},
        "additionalProperties": False,
    },
    "any object": {"type": "object"},
    "nullable": _object(
        {
            "a": {"type": ["integer", "null"]},
            "b": {"anyOf": [{"type": "string", "minLength": 3, "maxLength": 5}, {"type": "null"}]},
            "c": {"type": "array", "items": {"type": ["boolean", "null"]}, "minItems": 1},
        },
        **_CLOSED,
    ),
    "all of": {
        "allOf": [
            _object({"id": {"type": "integer", "minimum": 1}}),
            _object({"label": {"type": "string", "minLength": 2, "maxLength": 12}}),
        ]
    },
}


@dataclass
class Found:
    """What came of a schema."""

    texts: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    tokens: int = 0
    closed: int = 0
    seconds: float = 0.0


def random_model(seed: int = 0) -> tuple[Llama, Tokenizer]:
    """A model that knows nothing, and its tokenizer."""
    tokenizer = Tokenizer.train(['El niño {"a": 1, "b": [2, 3]} comió piñas.'] * 3, 300)
    config = LlamaConfig(
        # Some rows stand for no token, as in many a model.
        vocab_size=tokenizer.vocab_size + 5,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    return Llama(config, torch.Generator().manual_seed(seed)).eval().requires_grad_(False), tokenizer


@torch.inference_mode()
def write(model: Llama, tokenizer: Tokenizer, schema: dict[str, Any], texts: int, tokens: int) -> Found:
    """So many texts of at most so many tokens each under a schema."""
    found = Found()
    for first in range(0, texts, _BATCH):
        _write_batch(model, tokenizer, schema, range(first, min(texts, first + _BATCH)), tokens, found)
    return found


def _write_batch(
    model: Llama, tokenizer: Tokenizer, schema: dict[str, Any], seeds: range, tokens: int, found: Found
) -> None:
    format, rows = JsonFormat(json_schema=schema), model.config.vocab_size
    grammars = [grammar_of(format, tokenizer, rows) for _ in seeds]
    settings = GenerationConfig(temperature=1.0, max_new_tokens=tokens)
    samplers = [Sampler(settings.model_copy(update={"seed": seed}), [], rows) for seed in seeds]
    written: list[list[int]] = [[] for _ in seeds]
    under_way = set(range(len(seeds)))
    state = open_state(model, [[tokenizer.end_id, seed % 256] for seed in seeds], tokens)
    scores_BV = state.next_logits()
    for left in range(tokens, 0, -1):
        begun = time.perf_counter()
        for row in list(under_way):
            token = grammars[row].choose(samplers[row], scores_BV[row], left).token_id
            written[row].append(token)
            if grammars[row].finished or token in tokenizer.end_ids:
                under_way.discard(row)
                found.closed += left == 1
        found.seconds += time.perf_counter() - begun
        if not under_way:
            break
        if left > 1:
            scores_BV = state.next_logits(torch.tensor([ids[-1] for ids in written]))
    for ids in written:
        text = tokenizer.decode(ids)
        fault = validate(format, text)
        found.texts.append(text)
        found.faults += [f"{fault}: {text}"] if fault else []
        found.tokens += len(ids)


def main() -> None:
    """A line for each schema."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("schemas", nargs="*", metavar="SCHEMA", help=", ".join(SCHEMAS))
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=200)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = random_model()
    print(f"{'schema':20} {'valid':>12} {'closed':>7} {'distinct':>9} {'tokens':>7} {'us a token':>11}")
    valid = texts = 0
    for name in given.schemas or SCHEMAS:
        found = write(model, tokenizer, SCHEMAS[name], given.texts, given.tokens)
        good = given.texts - len(found.faults)
        valid, texts = valid + good, texts + given.texts
        cost = 1e6 * found.seconds / found.tokens
        print(
            f"{name:20} {good:>5} of {given.texts:<4} {found.closed:>6} {len(set(found.texts)):>9} "
            f"{found.tokens / given.texts:>7.1f} {cost:>11.0f}",
            flush=True,
        )
        for fault in found.faults[:3]:
            print("   ", json.dumps(fault, ensure_ascii=False)[:300])
    print(f"valid: {valid} of {texts}")


if __name__ == "__main__":
    main()
