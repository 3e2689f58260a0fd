"""Models of the Hugging Face Hub, where the network allows: `hf:ORG/NAME` or `hf:ORG/NAME@REVISION`.

Needs the package `huggingface_hub` (the extra [hub]). Only numbers and texts are downloaded, never programs.
"""

import errno
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yunque.errors import UserError
from yunque.progress import Progress, silent

PREFIX = "hf:"
_NAME = re.compile(r"hf:([A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}|[A-Za-z0-9][\w.-]{0,95})(?:@([\w./-]{1,100}))?")
_TEXTS = (".json", ".txt", ".model", ".tiktoken", ".jinja", ".md", "LICENSE", "LICENCE", "NOTICE")
# More chat templates, and what sentence-transformers says of the steps after the model (`1_Pooling`).
_BELOW = re.compile(r"additional_chat_templates/[^/]+\.jinja|\d+_\w+/[^/]+\.json")
# Errors of a disk that do not name a file.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
# The kinds of weights, the best first.
_WEIGHTS = (
    re.compile(r"model\.safetensors|model-\d+-of-\d+\.safetensors"),
    re.compile(r"pytorch_model\.bin|pytorch_model-\d+-of-\d+\.bin"),
)


@dataclass(frozen=True)
class Download:
    """A model on this machine: its folder in the cache, and the revision (a commit) that it is."""

    folder: Path
    revision: str


def download(source: str, progress: Progress = silent) -> Download:
    """Bring the model `hf:ORG/NAME[@REVISION]` here, or find it in the cache of huggingface_hub.

    Raises UserError, with what to do, where the package or the network is missing or there is no such model.
    """
    found = _NAME.fullmatch(source)
    if not found:
        raise UserError(f"{source!r}: write it as hf:ORG/NAME or hf:ORG/NAME@REVISION")
    name, revision = found.groups()
    hub = _package(source)
    try:
        info = hub.HfApi().model_info(name, revision=revision)
        names = _wanted(source, [file.rfilename for file in info.siblings or ()])
        folder = Path()
        with progress(f"Downloading {name}", total=len(names)) as task:
            for file in names:
                path = Path(hub.hf_hub_download(name, file, revision=info.sha))
                folder = folder if "/" in file else path.parent
                task.advance(1, note=file)
        return Download(folder, info.sha)
    except UserError:
        raise
    except Exception as error:  # huggingface_hub, its HTTP library and the system each raise their own kinds
        cached = _cached(hub, name, revision)
        if cached is not None:
            return cached
        raise _told(source, name, error) from None


def _package(source: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            f"{source}: needs the package huggingface_hub, which is not installed: pip install 'yunque[hub]', or "
            "download the model's files another way and run `yunque model import FOLDER`"
        ) from None
    return huggingface_hub


def _wanted(source: str, names: Iterable[str]) -> list[str]:
    """The files to bring: texts, and the best kind of weights that there is."""
    names = sorted(names)
    texts = [name for name in names if "/" not in name and name.endswith(_TEXTS)]
    texts += [name for name in names if _BELOW.fullmatch(name)]
    for kind in _WEIGHTS:
        weights = [name for name in names if kind.fullmatch(name)]
        if weights:
            # Weights last: what is wrong with the texts is then known before gigabytes are here.
            return [*texts, *weights]
    packed = ", ".join(name for name in names if name.endswith(".gguf"))
    raise UserError(
        f"{source}: has no weights that can be read (safetensors or pytorch_model.bin)"
        + (f"; download one of {packed[:200]} and import that file" if packed else "")
    )


def _cached(hub: Any, name: str, revision: str | None) -> Download | None:
    """What an earlier download left, where it is whole."""
    try:
        folder = Path(hub.snapshot_download(name, revision=revision, local_files_only=True))
    except Exception:  # whatever is wrong with the cache, the first error is the one to tell
        return None
    whole = (folder / "config.json").exists() and any(
        kind.fullmatch(path.name) for kind in _WEIGHTS for path in folder.iterdir()
    )
    return Download(folder, folder.name) if whole else None


def _told(source: str, name: str, error: Exception) -> UserError:
    """What happened, and what to do, in one sentence."""
    kind = type(error).__name__
    if kind == "GatedRepoError":
        return UserError(
            f"{source}: its owner asks for a licence to be accepted: do so at the model's page while logged in, set "
            "HF_TOKEN, and try again"
        )
    if kind in ("RepositoryNotFoundError", "RevisionNotFoundError"):
        what = "revision" if kind.startswith("Revision") else "model"
        return UserError(f"{source}: there is no such {what} on the Hub (or it is private: set HF_TOKEN)")
    if isinstance(error, OSError) and error.errno and (error.filename or error.errno in _OF_THE_DISK):
        place = f" ({error.filename})" if error.filename else ""
        return UserError(f"{source}: could not be kept on this machine: {error.strerror}{place}")
    return UserError(
        f"{source}: the Hub cannot be reached from here ({kind}): on a machine that reaches it, download the files "
        f"of {name} (config.json, *.safetensors, tokenizer files) into a folder, bring it here and run "
        "`yunque model import FOLDER`"
    )
