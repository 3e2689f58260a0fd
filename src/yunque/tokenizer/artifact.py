"""Tokenizers by the names that people use, and keeping foreign ones in the workspace."""

from pathlib import Path

from yunque.errors import UserError
from yunque.tokenizer.read import read_tokenizer
from yunque.tokenizer.tokenizer import Tokenizer
from yunque.workspace import Artifact, Workspace

_KINDS = ("tokenizer/", "model/")


def tokenizer_of(workspace: Workspace, artifact: Artifact) -> Tokenizer:
    """The tokenizer of a tokenizer or model artifact, with what its other files tell. Raises UserError."""
    try:
        return read_tokenizer(workspace.files(artifact))
    except UserError as error:
        raise UserError(f"{artifact.ref}: {error}") from None


def open_tokenizer(ref: str) -> tuple[str, Tokenizer]:
    """The tokenizer that a person names, and how to call it: an artifact of the workspace, or a file or folder.

    `NAME` and `tokenizer/NAME@VERSION` are tokenizers and `model/NAME` is a model of the workspace; what is none of
    these is a path. A path that begins with a dot or a slash is never looked for in the workspace.
    Raises UserError where there is none.
    """
    path = Path(ref)
    if not ref.startswith(_KINDS) and path.exists():
        if ref.startswith((".", "/", "~")) or "/" in ref or path.is_file():
            return ref, read_tokenizer(path)
        if not any(one.name == ref for one in Workspace.open().list("tokenizer")):
            return ref, read_tokenizer(path)
    elif ref.startswith((".", "/")):
        raise UserError(f"{ref}: no such file or folder")
    workspace = Workspace.open()
    artifact = workspace.get(ref, None if ref.startswith("model/") else "tokenizer")
    return artifact.ref, tokenizer_of(workspace, artifact)


def import_tokenizer(workspace: Workspace, path: Path, name: str, pattern: str | None = None) -> Artifact:
    """Keep the tokenizer of a file or folder as the artifact `name`, with what its companion files tell."""
    tokenizer = read_tokenizer(path, pattern)
    config = {"imported": path.resolve().name} | ({"pattern": pattern} if pattern else {})
    figures = {"vocab_size": tokenizer.vocab_size, "special_tokens": len(tokenizer.special_tokens)}
    return workspace.put("tokenizer", name, tokenizer.to_files(), config=config, figures=figures)
