"""An artifact, and how it is named: `kind/name@version`."""

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

from yunque.errors import UserError

Kind = Literal["dataset", "tokenizer", "model", "adapter", "index", "prompt", "app", "evaluation", "report"]
KINDS: tuple[str, ...] = get_args(Kind)

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Artifact:
    """A versioned thing the workspace made; it never changes.

    `hash` covers kind, name, files, parents and configuration; `figures` and `environment` say how it went.
    """

    kind: str
    name: str
    version: int
    hash: str
    files: dict[str, str]
    parents: tuple[str, ...]
    config: dict[str, Any]
    figures: dict[str, Any]
    environment: dict[str, Any]
    created: str

    @property
    def ref(self) -> str:
        """`kind/name@version`."""
        return f"{self.kind}/{self.name}@{self.version}"

    def as_dict(self) -> dict[str, Any]:
        """Everything about it as plain JSON values."""
        return {"ref": self.ref, **{name: getattr(self, name) for name in self.__dataclass_fields__}}


@dataclass(frozen=True)
class Ref:
    """A name somebody typed: kind and version may be left out (None: any kind, the newest version)."""

    kind: str | None
    name: str
    version: int | None


def checked_name(name: str) -> str:
    """`name` if it can name an artifact; raises UserError otherwise."""
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} cannot be a name: use 1 to 64 lower-case letters, digits, '.', '_' or '-', "
            "the first a letter or digit"
        )
    return name


def parse_ref(text: str) -> Ref:
    """Read `[kind/]name[@version]`; raises UserError if it is not that."""
    kind, slash, rest = text.partition("/")
    if not slash:
        kind, rest = "", text
    if kind and kind not in KINDS:
        raise UserError(f"{text!r}: {kind!r} is not a kind of artifact ({', '.join(KINDS)})")
    name, at, version = rest.partition("@")
    if at and not re.fullmatch(r"[0-9]{1,9}", version):
        raise UserError(f"{text!r}: the version after '@' must be a whole number")
    return Ref(kind or None, checked_name(name), int(version) if at else None)
