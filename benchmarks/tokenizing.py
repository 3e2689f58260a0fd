"""How fast a corpus becomes ids: `tokenizers`, tiktoken's own batch, and Yunque's encoder with and without its cache.

    python benchmarks/tokenizing.py TOKENIZER TEXTS... [--megabytes 16] [--rounds 5] [--threads 2]

TOKENIZER is a file or folder of a byte-level BPE (GPT-2's, say); TEXTS are text files, or folders of them, cut at
empty lines. Interleaved runs over the same texts, medians; the ids are compared.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from yunque.data.encoded import encoded_texts
from yunque.data.instructions import InstructionRow, write_instructions
from yunque.tokenizer import read_tokenizer
from yunque.tokenizer.bulk import bulk_encoder
from yunque.workspace import Workspace


def read_paragraphs(paths: Sequence[Path], most_bytes: int) -> list[str]:
    """Paragraphs of all the files, evenly drawn, up to `most_bytes` of UTF-8."""
    files = [file for path in paths for file in (sorted(path.rglob("*.txt")) if path.is_dir() else [path])]
    paragraphs = [
        part
        for file in files
        for part in file.read_text(encoding="utf-8", errors="replace").split("\n\n")
        if part.strip()
    ]
    whole = sum(len(part.encode()) for part in paragraphs)
    step = max(1, whole // most_bytes)
    return paragraphs[::step]


def main() -> None:
    """Print megabytes a second, and ratios to `tokenizers`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--megabytes", type=float, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    given = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(given.threads)
    texts = read_paragraphs(given.texts, int(given.megabytes * 1e6))
    size = sum(len(text.encode()) for text in texts)
    tokenizer = read_tokenizer(given.tokenizer)
    begin = time.perf_counter()
    bulk = bulk_encoder(tokenizer._described, tokenizer._inner)
    if bulk is None:
        raise SystemExit(f"{given.tokenizer}: has no quick encoder")
    print(
        f"{len(texts):,} paragraphs, {size / 1e6:.1f} MB; the encoder was made in {time.perf_counter() - begin:.1f} s"
    )
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace.open(folder)
        rows = [InstructionRow(f"r{n}", "copy", "en", "t", text, "", "x") for n, text in enumerate(texts)]
        dataset = write_instructions(workspace, "texts", {"train": rows})
        encoded_texts(workspace, dataset, tokenizer)
        ways: dict[str, Callable[[], object]] = {
            "tokenizers.encode_batch": lambda: tokenizer._inner.encode_batch(texts, add_special_tokens=False),
            "tokenizers.encode_batch_fast": lambda: tokenizer._inner.encode_batch_fast(
                texts, add_special_tokens=False
            ),
            "tiktoken.encode_ordinary_batch": lambda: bulk._encoding.encode_ordinary_batch(
                texts, num_threads=given.threads
            ),
            "yunque": lambda: bulk.encode_batch(texts),
            "yunque, from the cache": lambda: encoded_texts(workspace, dataset, tokenizer).tokens.sum(),
        }
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(given.rounds):
            for name, way in ways.items():
                begin = time.perf_counter()
                way()
                spent[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(seconds) for name, seconds in spent.items()}
    for name, seconds in medians.items():
        print(
            f"{name:32} {size / seconds / 1e6:8.1f} MB/s {medians['tokenizers.encode_batch'] / seconds:8.2f}x"
        )
    theirs = tokenizer._inner.encode_batch(texts, add_special_tokens=False)
    other = sum(
        not np.array_equal(encoding.ids, ids)
        for encoding, ids in zip(theirs, bulk.encode_batch(texts), strict=True)
    )
    print(f"paragraphs with other ids: {other}")


if __name__ == "__main__":
    main()
