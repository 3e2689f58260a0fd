"""Models that come into the workspace from outside, and leave it: proved, kept bit for bit, with their source."""

import json
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from yunque.errors import UserError
from yunque.model.checkpoint import check_memory, fields_file, plan_loading
from yunque.model.formats.files import TensorEntry, read_json
from yunque.model.formats.gguf_writer import GgufExport
from yunque.model.formats.safetensors_writer import write_safetensors
from yunque.model.hub import PREFIX, download
from yunque.model.opening import EXPORT_MARK, Checkpoint, open_checkpoint, open_files
from yunque.model.sources import TensorSource, resident_bytes
from yunque.progress import Progress, silent
from yunque.tokenizer.conventions import TEMPLATE_FILE
from yunque.workspace import Artifact, Workspace, atomic_folder
from yunque.workspace.artifact import checked_name
from yunque.workspace.files import sha256_of

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
# The rest of a disk after an import or an export: other programs want to write too.
_SPARE_DISK = 64 << 20

ExportFormat = Literal["hf", "gguf"]


def import_model(
    workspace: Workspace,
    source: str,
    name: str | None = None,
    dtype: str | None = None,
    tokenizer: Path | None = None,
    progress: Progress = silent,
    chat_template: str | None = None,
) -> Artifact:
    """Keep the model at `source` (a path, or `hf:ORG/NAME[@REVISION]`) as the artifact `model/NAME`.

    Weights of safetensors are kept byte for byte; others are written as safetensors, bit for bit, unless `dtype`
    changes them. `chat_template` is how it is to write conversations, whatever came with it. One tensor at a time is
    in memory (of a `.bin` of before torch 1.6, all of them). Raises UserError for what is no whole model of a family
    that is known; nothing is kept then, and the source is never changed.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
    if not source:
        raise UserError("name a folder, a file, or hf:ORG/NAME to import")
    # The name is checked before anything is downloaded.
    name = checked_name(name) if name else _name_of(source)
    revision = None
    path = Path(source)
    if source.startswith(PREFIX):
        found = download(source, progress)
        path, revision = found.folder, found.revision
    checkpoint = open_checkpoint(path, tokenizer)
    asked_for = set() if chat_template is None else {TEMPLATE_FILE}
    if chat_template is not None:
        checkpoint = _with_chat_template(checkpoint, chat_template)
    config = checkpoint.configuration
    check_memory(checkpoint.source.where, resident_bytes(checkpoint.source))
    plan_loading(config, checkpoint.source)
    with _canonical(workspace, checkpoint, dtype, progress) as (files, entries):
        return workspace.put(
            "model",
            name,
            files,
            config={
                "source": source if revision else str(path.resolve()),
                "revision": revision,
                "format": checkpoint.format,
                "family": config.model_type,
                "source_files": _hashes(checkpoint, progress),
                "dtype": dtype,
                "made": sorted(set(files) - set(checkpoint.kept) - set(checkpoint.weights) - asked_for),
            },
            figures={**_figures(entries), "context": config.context},
        )


def _with_chat_template(checkpoint: Checkpoint, template: str) -> Checkpoint:
    if checkpoint.tokenizer is None:
        raise UserError("chat-template: the model came without a tokenizer: name one with --tokenizer")
    kept = {name: path for name, path in checkpoint.kept.items() if name != TEMPLATE_FILE}
    return replace(checkpoint, kept=kept, tokenizer=checkpoint.tokenizer.with_chat_template(template))


def _name_of(source: str) -> str:
    """A name for the artifact from the last part of where it comes from."""
    last = (
        source.removeprefix(PREFIX).partition("@")[0]
        if source.startswith(PREFIX)
        else str(Path(source).resolve())
    )
    stem = re.sub(r"\.(gguf|bin)$", "", last.rpartition("/")[2].lower())
    # Letters without their marks: ñ is an n and a tilde.
    plain = "".join(
        letter for letter in unicodedata.normalize("NFKD", stem) if not unicodedata.combining(letter)
    )
    name = re.sub(r"[^a-z0-9._-]+", "-", plain).strip("._-")[:64].rstrip("._-")
    if not name:
        raise UserError(f"{source}: no name follows from it: give one with --name")
    return name


def _hashes(checkpoint: Checkpoint, progress: Progress) -> dict[str, str]:
    """The SHA-256 of each file that the model came in."""
    files = {**checkpoint.kept, **checkpoint.weights}
    with progress("Hashing the files", total=len(files)) as task:
        hashes: dict[str, str] = {}
        for name, path in sorted(files.items()):
            hashes[name] = sha256_of(path)
            task.advance(1, note=name)
    return hashes


def _figures(entries: Mapping[str, TensorEntry]) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for entry in entries.values():
        kind = str(entry.dtype).removeprefix("torch.")
        counts[kind] = counts.get(kind, 0) + entry.count
    return {
        "parameters": sum(counts.values()),
        "bytes": sum(entry.bytes for entry in entries.values()),
        "dtype": max(counts, key=lambda kind: counts[kind]) if counts else None,
    }


@contextmanager
def _canonical(
    workspace: Workspace, checkpoint: Checkpoint, dtype: str | None, progress: Progress
) -> Iterator[tuple[dict[str, bytes | Path], Mapping[str, TensorEntry]]]:
    """The files to keep: those that came, `config.json` and `tokenizer.json` always, the weights as safetensors."""
    files: dict[str, bytes | Path] = dict(checkpoint.kept)
    if checkpoint.tokenizer is not None:
        made = checkpoint.tokenizer.to_files().items()
        files |= {name: content for name, content in made if name not in checkpoint.kept}
    fields = dict(checkpoint.fields)
    if dtype is not None:
        fields["dtype" if "dtype" in fields else "torch_dtype"] = dtype
    if dtype is not None or not checkpoint.is_hugging_face:
        files["config.json"] = fields_file(fields)
    entries, read = _converted(checkpoint.source, dtype)
    total = sum(entry.bytes for entry in entries.values())
    if checkpoint.format == "safetensors" and dtype is None:
        _check_disk(workspace.root, total)
        yield {**files, **checkpoint.weights}, entries
        return
    # Written here and copied from here: twice the size for a moment.
    _check_disk(workspace.root, 2 * total)
    with tempfile.TemporaryDirectory(prefix=".import.", dir=workspace.root) as folder:
        names = write_safetensors(Path(folder), entries, read, progress=progress)
        yield {**files, **{name: Path(folder) / name for name in names}}, entries


def _converted(source: TensorSource, dtype: str | None) -> tuple[Mapping[str, TensorEntry], Any]:
    """What the tensors will be, and how each is read; whole numbers are never converted.

    Reading raises UserError where a number is beyond what `dtype` holds.
    """
    if dtype is None:
        return source.entries, source.read
    wanted = DTYPES[dtype]
    entries = {
        name: replace(entry, dtype=wanted if entry.dtype.is_floating_point else entry.dtype)
        for name, entry in source.entries.items()
    }

    def read(name: str) -> Tensor:
        stored = source.read(name)
        converted = stored.to(entries[name].dtype)
        _check_range(f"{source.where}: the tensor {name}", stored, converted)
        return converted

    return entries, read


def _check_range(what: str, stored: Tensor, converted: Tensor) -> None:
    if not converted.is_floating_point() or converted.isfinite().all():
        return
    lost = int((stored.double().isfinite() & ~converted.isfinite()).sum())
    if lost:
        kind = str(converted.dtype).removeprefix("torch.")
        better = "bfloat16 or float32" if kind == "float16" else "none, which keeps them as they are"
        raise UserError(f"{what} has {lost:,} numbers that are beyond {kind}: as --dtype, take {better}")


def _check_disk(folder: Path, wanted: int) -> None:
    free = shutil.disk_usage(folder).free - _SPARE_DISK
    if wanted > free:
        raise UserError(
            f"{folder}: {wanted / 1e9:.1f} GB are needed on this disk, and {max(free, 0) / 1e9:.1f} GB are free"
        )


def export_model(
    workspace: Workspace,
    ref: str,
    folder: Path,
    format: ExportFormat = "hf",
    max_shard_bytes: int | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> list[Path]:
    """Write the model `ref` into `folder`, and return the files made.

    "hf" is a folder that `transformers` opens, weights in shards of at most `max_shard_bytes` if given; "gguf" a file
    NAME-q8_0.gguf with int8 matrices for llama.cpp. A folder that an earlier export made is replaced. Raises
    UserError where anything else is in it, or a file was changed since (unless `force`), or the model cannot be
    written in this format.
    """
    artifact = workspace.get(ref, "model")
    _check_target(folder, force)
    files = workspace.files(artifact)
    checkpoint = open_files(files)
    config = checkpoint.configuration
    if config.quantization_config:
        raise UserError(
            f"{artifact.ref}: is quantized in Yunque's own way: export the model that it was made from"
        )
    plan_loading(config, checkpoint.source)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _check_disk(folder.parent, sum(entry.bytes for entry in checkpoint.source.entries.values()))
    with atomic_folder(folder) as temporary:
        if format == "gguf":
            _export_gguf(artifact, checkpoint, temporary, progress)
        else:
            _export_hugging_face(artifact, checkpoint, temporary, max_shard_bytes, progress)
        mark = {
            "artifact": artifact.ref,
            "hash": artifact.hash,
            "format": format,
            "files": {
                path.relative_to(temporary).as_posix(): {
                    "size": path.stat().st_size,
                    "sha256": sha256_of(path),
                }
                for path in _files_in(temporary)
            },
        }
        (temporary / EXPORT_MARK).write_text(json.dumps(mark, indent=1) + "\n", encoding="utf-8")
        # A temporary folder is for its owner only; what is exported is for others too.
        temporary.chmod(0o755)
    return _files_in(folder)


def _files_in(folder: Path) -> list[Path]:
    """What is in it and below, links too; a folder is nothing of its own."""
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())


def _check_target(folder: Path, force: bool) -> None:
    if Path.cwd().is_relative_to(folder.resolve()):
        raise UserError(f"{folder}: is the current folder, or holds it: name a folder to make")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder}: is not a folder: name another place")
    if force or not folder.is_dir() or not any(folder.iterdir()):
        return
    exported = _exported(folder)
    if not exported:
        raise UserError(f"{folder}: is not empty, and no earlier export: name another folder, or add --force")
    for path in _files_in(folder):
        name = path.relative_to(folder).as_posix()
        if name != EXPORT_MARK and not _is_as_exported(path, exported.get(name)):
            what = "was changed since its export" if name in exported else "is no part of the earlier export"
            raise UserError(
                f"{path}: {what}, and would be lost: put it elsewhere, name another folder, or add --force"
            )


def _exported(folder: Path) -> dict[str, Any]:
    """The files that an earlier export put there, by name, with their sizes and hashes; none where it is not said."""
    mark = folder / EXPORT_MARK
    try:
        files = read_json(mark).get("files") if not mark.is_symlink() else None
    except UserError:
        return {}
    return files if isinstance(files, dict) else {}


def _is_as_exported(path: Path, fact: Any) -> bool:
    if path.is_symlink() or not path.is_file() or not isinstance(fact, dict):
        return False
    return fact.get("size") == path.stat().st_size and fact.get("sha256") == sha256_of(path)


def _export_gguf(artifact: Artifact, checkpoint: Checkpoint, folder: Path, progress: Progress) -> None:
    export = GgufExport(
        checkpoint.configuration, checkpoint.source.entries, checkpoint.source.read, artifact.ref
    )
    tokenizer = None
    if checkpoint.tokenizer is not None:
        described = (
            read_json(checkpoint.kept["tokenizer.json"])
            if "tokenizer.json" in checkpoint.kept
            else json.loads(checkpoint.tokenizer.to_json())
        )
        tokenizer = (checkpoint.tokenizer, described)
    export.write(folder / f"{artifact.name}-q8_0.gguf", artifact.name, tokenizer, progress)


def _export_hugging_face(
    artifact: Artifact,
    checkpoint: Checkpoint,
    folder: Path,
    max_shard_bytes: int | None,
    progress: Progress,
) -> None:
    # What was made for us beside files that came with a tokenizer of their own would be in their readers' way.
    made = (
        set(artifact.config.get("made", ()))
        if artifact.config.get("format") in ("safetensors", "pytorch")
        else set()
    )
    for name, path in checkpoint.kept.items():
        if name not in made:
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / name)
    if max_shard_bytes is None:
        for name, path in checkpoint.weights.items():
            shutil.copyfile(path, folder / name)
        return
    write_safetensors(folder, checkpoint.source.entries, checkpoint.source.read, max_shard_bytes, progress)
