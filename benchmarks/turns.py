"""Programs that are compared take turns: each runs a few steps, waits for the others, and goes on.

Each is a process of its own, so that its peak memory is its own too. What else runs on the machine slows all of them
down alike; ratios of medians of interleaved slices are what can be trusted.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Slice:
    """A few steps: seconds on the wall and of the processor, and what else the program tells of them."""

    wall: float
    cpu: float
    told: dict[str, Any]


class Over(Exception):
    """There are no more turns."""


class Gate:
    """In a program that is compared: it runs `steps` steps a turn, and tells how long they took."""

    def __init__(self, steps: int) -> None:
        self._steps, self._done = steps, 0
        # What libraries print must not get between the lines of the protocol.
        self._out, sys.stdout = sys.stdout, sys.stderr
        self._begin = (0.0, 0.0)

    def wait(self) -> None:
        """Wait for a turn. Raises Over when there is none."""
        if sys.stdin.readline().strip() != "go":
            raise Over
        self._begin = time.perf_counter(), time.process_time()

    def tick(self, tell: Callable[[], dict[str, Any]] = dict) -> None:
        """A step is done. At the end of a turn: tell its time, and what `tell` gives (not timed), and wait."""
        self._done += 1
        if self._done % self._steps:
            return
        wall, cpu = time.perf_counter() - self._begin[0], time.process_time() - self._begin[1]
        self._answer(Slice(wall, cpu, tell()))
        self.wait()

    def _answer(self, slice: Slice) -> None:
        self._out.write(json.dumps(asdict(slice)) + "\n")
        self._out.flush()

    def finish(self) -> None:
        """Tell the memory that was taken at most."""
        self._out.write(json.dumps({"peak_bytes": peak_bytes()}) + "\n")
        self._out.flush()


def peak_bytes() -> int:
    """The most memory that this process has had (Linux)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return int(line.split()[1]) * 1024


class Program:
    """In the program that compares: one of the others."""

    def __init__(
        self, name: str, script: str, arguments: Sequence[str], threads: int, python: str = sys.executable
    ) -> None:
        """`python` is the interpreter that has what it needs."""
        self.name = name
        self.slices: list[Slice] = []
        self.over = False
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
        self._process = subprocess.Popen(
            [python, script, "--worker", name, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def turn(self) -> Slice:
        """Let it run its steps."""
        fields = self._ask("go")
        self.slices.append(Slice(**fields))
        return self.slices[-1]

    def end(self) -> int:
        """Stop it; the memory that it took at most, in bytes."""
        self.over = True
        peak: int = self._ask("end")["peak_bytes"]
        self._process.communicate(timeout=60)
        return peak

    def _ask(self, what: str) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} stopped: see above for the reason")
        found: dict[str, Any] = json.loads(line)
        return found

    def median(self, kind: str) -> float:
        """The median of its slices, the first left out, which warms up."""
        return statistics.median(getattr(slice, kind) for slice in self.slices[1:] or self.slices)


def run_worker(work: Callable[[Gate], None], steps: int) -> None:
    """Run `work` as a program that is compared, until there are no more turns."""
    gate = Gate(steps)
    try:
        gate.wait()
        work(gate)
    except Over:
        gate.finish()


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """The options that all comparisons have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each program that are counted")
    parser.add_argument("--quick", action="store_true", help="a tiny shape: see that it works, not how fast")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser


@dataclass(frozen=True)
class Finish:
    """How a race ended for a program: seconds it ran, and the loss at its end."""

    name: str
    wall: float
    cpu: float
    loss: float


def race(programs: Sequence[Program], turns: int) -> list[Finish]:
    """Let programs run to their ends, each of its `turns` turns telling its `loss`, which costs it no time."""
    for number in range(turns):
        for program in programs:
            slice = program.turn()
            print(f"{number + 1:3}/{turns} {program.name:24} loss {slice.told['loss']:.4f}", file=sys.stderr)
    finishes = []
    for program in programs:
        program.end()
        wall, cpu = (sum(getattr(slice, kind) for slice in program.slices) for kind in ("wall", "cpu"))
        finishes.append(Finish(program.name, wall, cpu, program.slices[-1].told["loss"]))
    return finishes
