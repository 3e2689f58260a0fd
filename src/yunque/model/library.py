"""Models that come into the workspace from outside, and leave it: proved, kept bit for bit, with their source."""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from yunque.errors import UserError
from yunque.model.checkpoint import plan_loading
from yunque.model.formats.files import TensorEntry, read_json
from yunque.model.formats.gguf_writer import GgufExport
from yunque.model.formats.safetensors_writer import write_safetensors
from yunque.model.hub import PREFIX, download
from yunque.model.opening import EXPORT_MARK, Checkpoint, config_file, open_checkpoint, open_files
from yunque.model.sources import TensorSource
from yunque.progress import Progress, silent
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
) -> Artifact:
    """Keep the model at `source` (a path, or `hf:ORG/NAME[@REVISION]`) as the artifact `model/NAME`.

    Weights of safetensors are kept byte for byte; others are written as safetensors, bit for bit, unless `dtype`
    changes them. One tensor at a time is in memory. Raises UserError for what is no whole model of a family that is
    known; nothing is kept then, and the source is never changed.
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
    config = checkpoint.configuration
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
                "made": sorted(set(files) - set(checkpoint.kept) - set(checkpoint.weights)),
            },
            figures={**_figures(entries), "context": config.context},
        )


def _name_of(source: str) -> str:
    """A name for the artifact from the last part of where it comes from."""
    last = (
        source.removeprefix(PREFIX).partition("@")[0]
        if source.startswith(PREFIX)
        else str(Path(source).resolve())
    )
    stem = re.sub(r"\.(gguf|bin)$", "", last.rpartition("/")[2].lower())
    name = re.sub(r"[^a-z0-9._-]+", "-", stem).lstrip("._-")[:64]
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
        files["config.json"] = config_file(fields)
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
    """What the tensors will be, and how each is read; whole numbers are never converted."""
    if dtype is None:
        return source.entries, source.read
    wanted = DTYPES[dtype]
    entries = {
        name: replace(entry, dtype=wanted if entry.dtype.is_floating_point else entry.dtype)
        for name, entry in source.entries.items()
    }

    def read(name: str) -> Tensor:
        return source.read(name).to(entries[name].dtype)

    return entries, read


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
    NAME-q8_0.gguf with int8 matrices for llama.cpp. Raises UserError where the folder has other things in it (unless
    `force`), or the model cannot be written in this format.
    """
    artifact = workspace.get(ref, "model")
    _check_target(folder, force)
    files = {path: workspace.file(artifact, path) for path in artifact.files}
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
        mark = {"artifact": artifact.ref, "hash": artifact.hash, "format": format}
        (temporary / EXPORT_MARK).write_text(json.dumps(mark, indent=1) + "\n", encoding="utf-8")
        # A temporary folder is for its owner only; what is exported is for others too.
        temporary.chmod(0o755)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _check_target(folder: Path, force: bool) -> None:
    if Path.cwd().is_relative_to(folder.resolve()):
        raise UserError(f"{folder}: is the current folder, or holds it: name a folder to make")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder}: is not a folder: name another place")
    if folder.is_dir() and any(folder.iterdir()) and not force and not (folder / EXPORT_MARK).is_file():
        raise UserError(f"{folder}: is not empty, and no earlier export: name another folder, or add --force")


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
