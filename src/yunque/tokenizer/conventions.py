"""What the files beside a tokenizer say: which tokens begin, end and pad, and how a conversation is written."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as AnyTokenizer
from tokenizers import processors

from yunque.errors import UserError

TEMPLATE_FILE = "chat_template.jinja"
COMPANIONS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "config.json",
    "chat_template.json",
    TEMPLATE_FILE,
)
# In the order in which those that a vocabulary lacks are added to it.
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LARGEST_COMPANION = 16_000_000


@dataclass(frozen=True)
class Conventions:
    """How a tokenizer is used, as far as its files tell.

    `named` maps `bos_token` and the like to a token; `special` are all tokens that a text cannot write; `end_ids` and
    `pad_id` come from the model's files, which speak of ids; `add_bos` and `add_eos` are None where nothing is said.
    """

    named: Mapping[str, str] = field(default_factory=dict)
    special: tuple[str, ...] = ()
    added: Mapping[int, str] = field(default_factory=dict)
    end_ids: tuple[int, ...] = ()
    pad_id: int | None = None
    add_bos: bool | None = None
    add_eos: bool | None = None
    chat_template: str | None = None
    tokenizer_class: str = ""
    model_type: str = ""
    extra_ids: int = 100
    files: Mapping[str, bytes] = field(default_factory=dict)


def read_small(path: Path, limit: int = _LARGEST_COMPANION) -> bytes:
    """The bytes of a file that is to be small. Raises UserError when it cannot be read, or is larger."""
    try:
        if path.stat().st_size > limit:
            raise UserError(f"{path}: is larger than {limit:,} bytes, which no file of its kind is")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def read_object(name: str, data: bytes) -> dict[str, Any]:
    """A JSON object. Raises UserError for anything else."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{name}: is not a JSON object")
    return value


def read_conventions(files: Mapping[str, Path]) -> Conventions:
    """What the companion files among `files` (name -> where it lies) say; those that are missing say nothing."""
    data = {name: read_small(files[name]) for name in COMPANIONS if name in files}
    parts = {name: read_object(name, data[name]) for name in data if name.endswith(".json")}
    config = parts.get("tokenizer_config.json", {})
    named, special = _special_tokens(parts.get("special_tokens_map.json", {}), config)
    added: dict[int, str] = {}
    for token, number in parts.get("added_tokens.json", {}).items():
        if isinstance(number, int):
            added[number] = token
    decoder = config.get("added_tokens_decoder")
    for number, entry in decoder.items() if isinstance(decoder, dict) else ():
        content = _text_of(entry)
        if content is not None and str(number).isdecimal():
            added[int(number)] = content
            if isinstance(entry, dict) and entry.get("special"):
                special.append(content)
    ends, pad_id = _model_ids(parts.get("generation_config.json", {}), parts.get("config.json", {}))
    kept = {name: data[name] for name in data if name != "config.json"}
    if ends and "generation_config.json" not in kept:
        kept["generation_config.json"] = json.dumps(
            {"eos_token_id": list(ends), "pad_token_id": pad_id}
        ).encode()
    return Conventions(
        named=named,
        special=tuple(dict.fromkeys(special)),
        added=added,
        end_ids=ends,
        pad_id=pad_id,
        add_bos=_flag(config, "add_bos_token"),
        add_eos=_flag(config, "add_eos_token"),
        chat_template=_template(data, parts),
        tokenizer_class=str(config.get("tokenizer_class") or ""),
        model_type=str(parts.get("config.json", {}).get("model_type") or ""),
        extra_ids=config["extra_ids"] if isinstance(config.get("extra_ids"), int) else 100,
        files=kept,
    )


def _text_of(entry: Any) -> str | None:
    """A token, which is a string or an object with a `content`."""
    content = entry.get("content") if isinstance(entry, dict) else entry
    return content if isinstance(content, str) and content else None


def _special_tokens(*parts: dict[str, Any]) -> tuple[dict[str, str], list[str]]:
    """The tokens with a role, and all special tokens in the order in which they are told."""
    told: dict[str, str] = {}
    special: list[str] = []
    for part in parts:
        for role in _NAMED:
            token = _text_of(part.get(role))
            if token is not None:
                told[role] = token
        for key in ("additional_special_tokens", "extra_special_tokens"):
            more = part.get(key)
            values = more.values() if isinstance(more, dict) else more if isinstance(more, list) else ()
            special += [token for value in values if (token := _text_of(value)) is not None]
    named = {role: told[role] for role in _NAMED if role in told}
    return named, [*named.values(), *special]


def _model_ids(*parts: dict[str, Any]) -> tuple[tuple[int, ...], int | None]:
    ends: list[int] = []
    pad: int | None = None
    for part in parts:
        told = part.get("eos_token_id")
        ends += [number for number in (told if isinstance(told, list) else [told]) if type(number) is int]
        if pad is None and type(part.get("pad_token_id")) is int:
            pad = part["pad_token_id"]
    return tuple(dict.fromkeys(ends)), pad


def _flag(config: dict[str, Any], name: str) -> bool | None:
    return config[name] if isinstance(config.get(name), bool) else None


def _template(data: Mapping[str, bytes], parts: Mapping[str, dict[str, Any]]) -> str | None:
    """The template of a conversation: the file of its own goes before the field."""
    if TEMPLATE_FILE in data:
        try:
            return data[TEMPLATE_FILE].decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{TEMPLATE_FILE}: is not UTF-8 text") from None
    for name in ("tokenizer_config.json", "chat_template.json"):
        told = parts.get(name, {}).get("chat_template")
        if isinstance(told, str):
            return told
        if isinstance(told, list):
            named = {
                str(each.get("name")): each["template"]
                for each in told
                if isinstance(each, dict) and isinstance(each.get("template"), str)
            }
            if named:
                return str(named.get("default", next(iter(named.values()))))
    return None


def around_text(inner: AnyTokenizer, named: Mapping[str, str], add_bos: bool, add_eos: bool) -> Any:
    """The post-processor that puts the begin and end tokens around a text, or None where it puts none."""
    before = [named["bos_token"]] if add_bos and "bos_token" in named else []
    behind = [named["eos_token"]] if add_eos and "eos_token" in named else []
    used = [(token, inner.token_to_id(token)) for token in dict.fromkeys([*before, *behind])]
    if not used:
        return None
    return processors.TemplateProcessing(
        single=[*before, "$A", *behind],
        pair=[*before, "$A", *behind, *before, "$B:1", *behind],
        special_tokens=used,
    )
