"""What a run costs: time, tokens, operations, and an estimate of the energy.

Energy is read from the processor where it tells (RAPL, Linux's powercap). Elsewhere it is the seconds that cores were
at work, times the watts of a core that is assumed; every figure says which of the two it is.
"""

import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from yunque.errors import UserError

WATTS_VARIABLE = "YUNQUE_WATTS_PER_CORE"
"""The environment variable that says what a core at work takes on this machine."""

WATTS_PER_CORE = 10.0
"""What is assumed where it is not said: a desktop of 65 W and six cores, a server of 280 W and 28."""

POWERCAP = Path("/sys/class/powercap")
EnergyMethod = Literal["measured", "estimated"]

_JOULES_PER_WH = 3600.0


@dataclass(frozen=True)
class Cost:
    """Wall `seconds`, seconds of cores at work (`cpu_seconds`), tokens read, floating point operations, watt-hours.

    Energy that was "measured" is all that the processors took meanwhile, for other programs too; "estimated" is
    `cpu_seconds` times `watts_per_core`. Neither counts memory, disks, screen or a graphics card. `preparing_seconds`
    are those of `seconds` that went by before the first step.
    """

    seconds: float
    cpu_seconds: float
    tokens: int
    flops: int
    energy_wh: float
    energy_method: EnergyMethod
    watts_per_core: float | None
    preparing_seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def sentence(self) -> str:
        """The cost in words."""
        how = (
            "read from the processor, other programs included"
            if self.energy_method == "measured"
            else f"estimated: {self.cpu_seconds:,.1f} s of a core at {self.watts_per_core:g} W"
        )
        before = self.preparing_seconds
        of_it = f" ({before:,.1f} s of it before the first step)" if before else ""
        return (
            f"{self.seconds:,.1f} s{of_it}, {self.tokens:,} tokens, {self.flops / 1e12:.3g} TFLOP, "
            f"{self.energy_wh:.3g} Wh ({how})"
        )


class Meter:
    """Counts what this process spends from now on, on top of what a run had spent before it was stopped.

    `joules` is None where the processor does not tell, and for a run of which some part went by without it. Raises
    UserError for watts (see `watts_per_core`) that are no number.
    """

    def __init__(
        self, cpu_seconds: float = 0.0, joules: float | None = 0.0, powercap: Path = POWERCAP
    ) -> None:
        watts_per_core()  # a wrong number is told before the work, not after it
        self._cpu_seconds = cpu_seconds - time.process_time()
        self._joules, self._powercap = joules, powercap
        self._counters = read_counters(powercap)

    @property
    def cpu_seconds(self) -> float:
        """Seconds that cores were at work for the run."""
        return self._cpu_seconds + time.process_time()

    @property
    def joules(self) -> float | None:
        """What the processors took since the run began."""
        now = read_counters(self._powercap)
        if self._joules is None or not now or now.keys() != self._counters.keys():
            return None
        for place, (energy, limit) in now.items():
            spent = energy - self._counters[place][0]
            # The counter begins anew at its limit: in an hour or so, and it is read at every step.
            self._joules += (spent if spent >= 0 else spent + limit) / 1e6
        self._counters = now
        return self._joules


def read_counters(powercap: Path = POWERCAP) -> dict[str, tuple[int, int]]:
    """The energy counter of each processor and its limit, in microjoules; empty where this process may not read it.

    A processor is `intel-rapl:0` (AMD's has that name too); `intel-rapl:0:0` is a part of it.
    """
    found: dict[str, tuple[int, int]] = {}
    for place in sorted(powercap.glob("intel-rapl:*")):
        if place.name.count(":") != 1:
            continue
        try:
            energy, limit = (int((place / name).read_text()) for name in ("energy_uj", "max_energy_range_uj"))
        except (OSError, ValueError):
            return {}
        found[place.name] = (energy, limit)
    return found


def spent(cpu_seconds: float, joules: float | None) -> dict[str, float]:
    """The fields of a line of the log that `cost_of` reads back; no joules where the processor does not tell."""
    fields = {"cpu_seconds": round(cpu_seconds, 3)}
    return fields if joules is None else fields | {"joules": round(joules, 3)}


def watts_per_core() -> float:
    """Watts of a core at work: from the environment, else what is assumed; raises UserError for no such number."""
    text = os.environ.get(WATTS_VARIABLE, "")
    if not text:
        return WATTS_PER_CORE
    try:
        watts = float(text)
    except ValueError:
        watts = math.nan
    if not 0 < watts < math.inf:
        raise UserError(f"{WATTS_VARIABLE}: {text!r} is not a number of watts above 0")
    return watts


def cost_of(last: Mapping[str, Any], plan: Mapping[str, Any], preparation: Mapping[str, Any]) -> Cost:
    """The cost of a run from the last line of its log, its plan, and what was spent before the first step (nothing is
    known of it in a run of an earlier version); raises UserError as `watts_per_core` does."""
    # A log from before processor time was counted has wall time alone.
    cpu_seconds = float(last.get("cpu_seconds", last["seconds"] * plan["threads"]))
    cpu_seconds += preparation.get("cpu_seconds", 0.0)
    preparing = float(preparation.get("seconds", 0.0))
    method: EnergyMethod = "measured"
    watts, joules = None, last.get("joules")
    if joules is not None and preparation:
        joules = joules + preparation["joules"] if "joules" in preparation else None
    if joules is None:
        method, watts = "estimated", watts_per_core()
        joules = cpu_seconds * watts
    return Cost(
        seconds=round(float(last["seconds"]) + preparing, 3),
        cpu_seconds=cpu_seconds,
        tokens=int(last["tokens"]),
        flops=round(plan["flops"] / plan["tokens"] * last["tokens"]) if plan["tokens"] else 0,
        energy_wh=joules / _JOULES_PER_WH,
        energy_method=method,
        watts_per_core=watts,
        preparing_seconds=preparing,
    )
