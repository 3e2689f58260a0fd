"""Preference rows: a prompt with the better and the worse of two answers; and prompts alone.

A file of them is JSON Lines, one object a line:

    {"id": "es-01", "prompt": "¿A qué hora abren?", "chosen": "A las nueve de la mañana.", "rejected": "Ni idea."}

`prompt` is what the user says, or a conversation whose last message is the user's: `[{"role": "user", "content":
"..."}]`. Without an `id` a row is called after its content. Other fields are not read.
"""

import hashlib
import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from yunque.data.json_lines import read_json_lines, write_json_lines
from yunque.errors import UserError
from yunque.workspace import Artifact, Workspace
from yunque.workspace.files import sha256_of

Message = tuple[str, str]
"""Who says it (system, user or assistant), and what."""

_ROLES = ("system", "user", "assistant")
SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class PromptRow:
    """What a model is asked; texts are in NFC."""

    id: str
    prompt: tuple[Message, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        said = [{"role": role, "content": content} for role, content in self.prompt]
        alone = len(said) == 1
        return {"id": self.id, "prompt": said[0]["content"] if alone else said}


@dataclass(frozen=True)
class PreferenceRow(PromptRow):
    """A prompt, the answer that people prefer, and the one that they do not."""

    chosen: str
    rejected: str

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**super().as_dict(), "chosen": self.chosen, "rejected": self.rejected}


def parse_preference(value: object) -> PreferenceRow:
    """One decoded JSON line as a row; raises ValueError that says which field is wrong."""
    asked = parse_prompt(value)
    assert isinstance(value, dict)
    chosen, rejected = _text(value, "chosen"), _text(value, "rejected")
    if chosen == rejected:
        raise ValueError("'chosen' and 'rejected' are the same text, so nothing is preferred")
    return PreferenceRow(asked.id, asked.prompt, chosen, rejected)


def parse_prompt(value: object) -> PromptRow:
    """The prompt of one decoded JSON line, which may be that of a preference row; raises ValueError."""
    if not isinstance(value, dict):
        raise ValueError("must be a JSON object")
    name = value.get("id")
    if name is None:
        content = json.dumps(value, ensure_ascii=False, sort_keys=True)
        name = hashlib.sha256(content.encode("utf-8", "replace")).hexdigest()[:16]
    elif not isinstance(name, str) or not name.strip():
        raise ValueError("the field 'id' must be text that is not empty")
    return PromptRow(name, _messages(value))


def _text(value: Mapping[str, Any], name: str) -> str:
    if name not in value:
        raise ValueError(f"the field {name!r} is missing")
    text = value[name]
    if not isinstance(text, str):
        raise ValueError(f"the field {name!r} must be text, not {type(text).__name__}")
    if not text.strip():
        raise ValueError(f"the field {name!r} is empty")
    return unicodedata.normalize("NFC", text)


def _messages(value: Mapping[str, Any]) -> tuple[Message, ...]:
    if not isinstance(value.get("prompt"), list):
        return (("user", _text(value, "prompt")),)
    messages = list[Message]()
    for number, message in enumerate(value["prompt"], start=1):
        if not isinstance(message, dict):
            raise ValueError(f"message {number} of 'prompt' must be an object with 'role' and 'content'")
        if message.get("role") not in _ROLES:
            raise ValueError(f"message {number} of 'prompt': 'role' must be one of {', '.join(_ROLES)}")
        try:
            messages.append((message["role"], _text(message, "content")))
        except ValueError as error:
            raise ValueError(f"message {number} of 'prompt': {error}") from None
    if not messages or messages[-1][0] != "user":
        raise ValueError("the last message of 'prompt' must be the user's")
    return tuple(messages)


def read_preferences(path: Path, on_bad: Callable[[str], None] | None = None) -> list[PreferenceRow]:
    """The rows of a JSON Lines file.

    A bad line raises UserError with file, line and field; with `on_bad` that sentence is handed over instead and
    the line is left out. Blank lines are passed over. A file without a good row is an error either way.
    """
    return read_json_lines(path, parse_preference, "preference row", on_bad)


def read_prompts(path: Path, on_bad: Callable[[str], None] | None = None) -> list[PromptRow]:
    """The prompts of a JSON Lines file, whether or not its rows have answers; like `read_preferences`."""
    return read_json_lines(path, parse_prompt, "prompt", on_bad)


def write_preferences(
    workspace: Workspace,
    name: str,
    splits: Mapping[str, Sequence[PromptRow]],
    sources: Sequence[Mapping[str, str]] = (),
) -> Artifact:
    """Keep rows as the dataset `name`: one file `SPLIT.jsonl` for each split ("train", "heldout").

    `sources` are the files that they were read from (`file`, `sha256`).
    """
    pairs = all(isinstance(row, PreferenceRow) for rows in splits.values() for row in rows)
    return write_json_lines(workspace, name, "preferences" if pairs else "prompts", splits, sources)


def add_preferences(
    workspace: Workspace,
    name: str,
    paths: Mapping[str, Path],
    on_bad: Callable[[str], None] | None = None,
    prompts_only: bool = False,
) -> Artifact:
    """Read the file of each split and keep them as the dataset `name`; `on_bad` is that of `read_preferences`."""
    read: Callable[..., Sequence[PromptRow]] = read_prompts if prompts_only else read_preferences
    splits = {split: read(path, on_bad) for split, path in paths.items()}
    sources = [{"file": str(path), "sha256": sha256_of(path)} for path in paths.values()]
    return write_preferences(workspace, name, splits, sources)


def shipped_preferences(workspace: Workspace) -> Artifact:
    """The preference rows that come with Yunque, in Spanish and English, as the dataset `preferences`."""
    with as_file(files("yunque") / "samples" / "preferences.jsonl") as path:
        rows = read_preferences(path)
        sources = [{"file": "samples/preferences.jsonl", "sha256": sha256_of(path)}]
    return write_preferences(workspace, "preferences", {"train": rows}, sources)


def preference_split(workspace: Workspace, artifact: Artifact, split: str) -> list[PreferenceRow]:
    """The pairs of one split of a dataset that `write_preferences` made; none where it has no such split.

    Raises UserError for a dataset of another kind.
    """
    if artifact.config.get("format") != "preferences":
        raise UserError(f"{artifact.ref} holds no preference rows (prompt, chosen, rejected)")
    if f"{split}.jsonl" not in artifact.files:
        return []
    return read_preferences(workspace.file(artifact, f"{split}.jsonl"))


def prompt_split(workspace: Workspace, artifact: Artifact, split: str) -> list[PromptRow]:
    """The prompts of one split of such a dataset, with answers or without."""
    if artifact.config.get("format") not in ("preferences", "prompts"):
        raise UserError(f"{artifact.ref} holds no prompts")
    if f"{split}.jsonl" not in artifact.files:
        return []
    return read_prompts(workspace.file(artifact, f"{split}.jsonl"))
