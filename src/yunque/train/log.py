"""The log of a run: a line a step in loss.jsonl, the same as TensorBoard events on request, and how fast it goes."""

import json
import os
from collections import deque
from pathlib import Path
from typing import Any, Protocol

from yunque.processes import world_size
from yunque.train.checkpoint import Position
from yunque.train.tensorboard import EventFile


class TokenCost(Protocol):
    """What a token costs, and what the machine can do."""

    @property
    def flops_per_token(self) -> int: ...
    @property
    def matmul_gflops(self) -> float: ...


class Log:
    """loss.jsonl, cut back to what the checkpoint knows of, so that no step stands in it twice; and with
    `tensorboard` an event file of the same lines beside it."""

    def __init__(self, folder: Path, length: int, tensorboard: bool = False) -> None:
        self._folder, self._length, self._tensorboard = folder, length, tensorboard
        self._events: EventFile | None = None

    def __enter__(self) -> "Log":
        path = self._folder / "loss.jsonl"
        self._file = path.open("ab")
        self._file.truncate(self._length)
        if self._tensorboard:
            self._events = EventFile(self._folder, read_log(path))
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()

    def write(self, line: dict[str, Any]) -> int:
        """Append a line; returns the length of loss.jsonl."""
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        if self._events is not None:
            self._events.write(line)
        return self._file.tell()

    def sync(self) -> None:
        """Put what was written on disk, before a checkpoint counts on it."""
        os.fsync(self._file.fileno())


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a loss.jsonl, one for each step."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Speed:
    """How fast the last steps of this process went."""

    _STEPS = 20

    def __init__(self, position: Position) -> None:
        self._marks = deque([(position.seconds, position.tokens)], self._STEPS + 1)

    def measure(self, position: Position, cost: TokenCost) -> dict[str, float]:
        """Up to `position`: tokens a second, and the model FLOPs utilization, a share of 1."""
        self._marks.append((position.seconds, position.tokens))
        (begin, before), (end, after) = self._marks[0], self._marks[-1]
        speed = (after - before) / max(end - begin, 1e-9)
        return {"tokens_per_second": round(speed, 1), "mfu": round(utilization(speed, cost), 4)}


def utilization(tokens_per_second: float, cost: TokenCost) -> float:
    """Model FLOPs utilization (Chowdhery et al. 2022, PaLM, arXiv:2204.02311, appendix B): the tokens a second, to
    those that a machine would read that did nothing but the model's products, at its speed.

    That speed is the one measured with a large matrix product, not one of a data sheet. Products that are made twice
    to save memory count once. Several processes could do as many times as much. 0 where the speed is not known.
    """
    possible = cost.matmul_gflops * 1e9 * world_size()
    return tokens_per_second * cost.flops_per_token / possible if possible else 0.0


def shown(line: dict[str, Any]) -> str:
    """A line of the log in a few words, for who watches."""
    told = f"loss {line['loss']:.3f} · {line['tokens_per_second']:,.0f} tokens/s"
    return f"{told} · MFU {line['mfu']:.0%}" if line.get("mfu") else told
