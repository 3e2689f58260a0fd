"""Texts of datasets as ids, kept beside the workspace's artifacts so that they are encoded once.

What is kept is found by its content: the texts' hashes and the tokenizer's. It can be deleted at any moment.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from yunque.data.texts import held_out_texts, training_texts
from yunque.progress import Progress, silent
from yunque.tokenizer import Tokenizer
from yunque.workspace import Artifact, Workspace, atomic_folder

_CHARACTERS_AT_ONCE = 4_000_000
_MOST_BYTES = 2_000_000_000
# Raised when what is kept under a name changes its form or meaning.
_FORM = 1


@dataclass(frozen=True)
class EncodedTexts:
    """Texts as ids: those of text `row_ids[n]` are `tokens[starts[n] : starts[n + 1]]`."""

    row_ids: list[str]
    tokens: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]

    def documents(self) -> Iterator[npt.NDArray[np.int32]]:
        """The ids of each text."""
        for start, end in pairwise(self.starts.tolist()):
            yield self.tokens[start:end]


def encoded_texts(
    workspace: Workspace,
    dataset: Artifact,
    tokenizer: Tokenizer,
    split: str = "train",
    progress: Progress = silent,
) -> EncodedTexts:
    """The texts of a dataset that may be trained on, or of a split held out, from the cache where they are there."""
    told = [_FORM, dataset.files, dataset.config.get("format"), split, tokenizer.fingerprint]
    key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]
    folder = workspace.root / "cache" / "encoded" / key
    if (found := _read(folder)) is not None:
        return found
    if split == "train":
        rows: Iterable[tuple[str, str]] = training_texts(workspace, dataset)
    else:
        rows = (("", text) for text in held_out_texts(workspace, dataset, split))
    encoded = encode_texts(tokenizer, rows, progress)
    with atomic_folder(folder) as temporary:
        np.save(temporary / "tokens.npy", encoded.tokens)
        np.save(temporary / "starts.npy", encoded.starts)
        (temporary / "rows.json").write_text(json.dumps(encoded.row_ids), encoding="utf-8")
    _make_room(folder.parent)
    return encoded


def encode_texts(
    tokenizer: Tokenizer, rows: Iterable[tuple[str, str]], progress: Progress = silent
) -> EncodedTexts:
    """Encode rows (id and text), on every core; rows without text are passed over."""
    row_ids: list[str] = []
    documents: list[npt.NDArray[np.int32]] = []
    waiting: list[str] = []
    characters = 0
    with progress("Encoding the data") as task:
        for row_id, text in rows:
            if not text:
                continue
            row_ids.append(row_id)
            waiting.append(text)
            characters += len(text)
            if characters >= _CHARACTERS_AT_ONCE:
                documents += tokenizer.encode_batch(waiting)
                task.advance(len(waiting), note=f"{len(documents)} rows")
                waiting, characters = [], 0
        documents += tokenizer.encode_batch(waiting)
    starts = np.concatenate(([0], np.cumsum([len(ids) for ids in documents], dtype=np.int64)))
    tokens = np.concatenate([np.empty(0, dtype=np.int32), *documents])
    return EncodedTexts(row_ids, tokens, starts.astype(np.int64))


def _read(folder: Path) -> EncodedTexts | None:
    """What is kept in `folder`, marked as used; None where it is not there, or not whole."""
    try:
        row_ids = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
        starts = np.load(folder / "starts.npy", allow_pickle=False)
        tokens = np.load(folder / "tokens.npy", mmap_mode="r", allow_pickle=False)
        os.utime(folder)
    except (OSError, ValueError):
        return None
    if len(starts) != len(row_ids) + 1 or len(tokens) != starts[-1]:
        return None
    return EncodedTexts(row_ids, tokens, starts)


def _make_room(folder: Path) -> None:
    """Delete what was used longest ago, past 2 GB; the newest stays."""
    kept: list[tuple[float, int, Path]] = []
    for entry in folder.iterdir():
        # Names with a dot are being written, and another process may be making room as well.
        with suppress(FileNotFoundError):
            if not entry.name.startswith("."):
                size = sum(file.stat().st_size for file in entry.iterdir())
                kept.append((entry.stat().st_mtime, size, entry))
    total = 0
    for number, (_, size, entry) in enumerate(sorted(kept, reverse=True)):
        total += size
        if number and total > _MOST_BYTES:
            shutil.rmtree(entry, ignore_errors=True)
