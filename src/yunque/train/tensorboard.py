"""The figures of a run as TensorBoard reads them: an event file, written without TensorBoard.

A file is a row of records (TFRecord): the length of the data in 8 bytes, a checksum of these in 4, the data, and its
checksum. The data is an `Event` in protocol buffers (tensorboard/compat/proto/event.proto): wall time (field 1), step
(2), version of the file (3, in the first), summary (5), and in a summary for each figure its name (1) and value (2).
Checksums are CRC-32C, turned and shifted.
"""

import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from time import time
from typing import Any

_NAME = "events.out.tfevents.0000000000.yunque"
_VERSION = b"brain.Event:2"
_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed
_BITS = 0xFFFFFFFF


def _row(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
    return value


_TABLE = [_row(value) for value in range(256)]


def checksum(data: bytes) -> int:
    """The masked CRC-32C of a record."""
    crc, table = _BITS, _TABLE
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    crc ^= _BITS
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & _BITS


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", checksum(length)), data, struct.pack("<I", checksum(data))))


def _number(value: int) -> bytes:
    """A whole number, seven bits in a byte, the lowest first."""
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])


def _field(number: int, data: bytes) -> bytes:
    """A field of text, or of a message."""
    return _number(number << 3 | 2) + _number(len(data)) + data


def _event(seconds: float, content: bytes) -> bytes:
    return b"\x09" + struct.pack("<d", seconds) + content


def _scalars(step: int, figures: Mapping[str, float]) -> bytes:
    values = (
        _field(1, _field(1, name.encode()) + b"\x15" + struct.pack("<f", value))
        for name, value in figures.items()
    )
    return b"\x10" + _number(step) + _field(5, b"".join(values))


class EventFile:
    """The event file of a run: what its log holds, and each line that comes. It never holds a step twice, for it is
    written anew from the log when a run goes on."""

    def __init__(self, folder: Path, log: Iterable[Mapping[str, Any]]) -> None:
        path = folder / _NAME
        begun = _begin(path)
        # The same file, not another in its place: a TensorBoard that has it open reads on.
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        lines = list(log)
        done = lines[-1]["seconds"] if lines else 0.0
        self._begun = time() - done if begun is None else begun
        self._file.write(_record(_event(self._begun, _field(3, _VERSION))))
        for line in lines:
            self._append(line)
        self._file.truncate()
        self._file.flush()

    def write(self, line: Mapping[str, Any]) -> None:
        """Append the figures of a line of loss.jsonl."""
        self._append(line)
        self._file.flush()

    def _append(self, line: Mapping[str, Any]) -> None:
        figures = {
            name: float(value)
            for name, value in line.items()
            if name != "step" and isinstance(value, int | float)
        }
        self._file.write(_record(_event(self._begun + line["seconds"], _scalars(line["step"], figures))))

    def close(self) -> None:
        """End the file."""
        self._file.close()


def _begin(path: Path) -> float | None:
    """When the run of this file began; None where there is none."""
    try:
        with path.open("rb") as file:
            data = file.read(21)
    except OSError:
        return None
    return float(struct.unpack("<d", data[13:21])[0]) if len(data) == 21 and data[12] == 0x09 else None
