"""Rows on their way into a dataset: on disk, by number, so that a corpus need not fit in memory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from yunque.data.duplicates import Shingler, minhash
from yunque.data.row import Row

_BATCH_SHINGLES = 1 << 16


def row_line(row: Row) -> bytes:
    """A row as its line in a file."""
    return json.dumps(row.as_dict(), ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


class RowStore:
    """A file of rows that grows; in memory it holds the place and the MinHash signature of each."""

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = path.open("w+b")
        self._offsets: list[int] = []
        self._shingler = Shingler()
        self._waiting: list[NDArray[np.uint64]] = []
        self._waiting_shingles = 0
        self._signatures: list[NDArray[np.uint32]] = []

    def __len__(self) -> int:
        return len(self._offsets)

    def add(self, row: Row) -> None:
        """Append a row; its number is how many there were before."""
        self._offsets.append(self._file.seek(0, 2))
        self._file.write(row_line(row))
        self._waiting.append(self._shingler.shingles(row.text))
        self._waiting_shingles += len(self._waiting[-1])
        if self._waiting_shingles > _BATCH_SHINGLES:
            self._sign()

    def _sign(self) -> None:
        self._signatures.append(minhash(self._waiting))
        self._waiting, self._waiting_shingles = [], 0

    def signatures(self) -> NDArray[np.uint32]:
        """The MinHash signatures of all rows (rows, permutations)."""
        self._sign()
        self._signatures = [np.concatenate(self._signatures)]
        return self._signatures[0]

    def row(self, number: int) -> Row:
        """Row number `number`, from 0."""
        self._file.seek(self._offsets[number])
        return Row.from_dict(json.loads(self._file.readline()))

    def text(self, number: int) -> str:
        """The text of a row."""
        return self.row(number).text

    def __iter__(self) -> Iterator[Row]:
        for number in range(len(self)):
            yield self.row(number)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
