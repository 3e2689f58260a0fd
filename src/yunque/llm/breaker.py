"""A circuit breaker for each provider: who fails again and again is left alone for a while (Nygard, Release It!)."""

import threading
import time
from collections import deque
from collections.abc import Callable

from pydantic import Field

from yunque.configuration import Settings
from yunque.llm.face import LanguageModel

HERE = "this machine"
"""The provider of whatever this process runs itself."""

_MOST_REMEMBERED = 1000
_LONGEST_REST = 600.0
"""No Retry-After keeps a model from being asked for longer than this (seconds)."""


class BreakerSettings(Settings):
    """After `failures` within `window` seconds that are at least `share` of the calls in them, a provider is left
    alone for `pause` seconds; then one call tries it."""

    failures: int = Field(default=10, ge=1)
    share: float = Field(default=0.9, ge=0, le=1)
    window: float = Field(default=30.0, gt=0)
    pause: float = Field(default=15.0, gt=0)


class _Circuit:
    """What is known of one provider; used under the breakers' lock."""

    def __init__(self) -> None:
        self.told: deque[tuple[float, bool]] = deque()
        self.failures = 0
        self.opened: float | None = None
        self.probe: float | None = None


class Breakers:
    """The circuits of all providers; one object is shared by everything in a process. Safe for many threads.

    `clock` tells seconds that only rise.
    """

    def __init__(
        self, settings: BreakerSettings | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.settings = settings or BreakerSettings()
        self._clock = clock
        self._lock = threading.Lock()
        self._circuits: dict[str, _Circuit] = {}
        self._rests: dict[str, float] = {}

    def rest(self, model: str, seconds: float) -> None:
        """A provider asked that one of its models be left alone for so long (Retry-After): that binds every call."""
        with self._lock:
            now = self._clock()
            self._rests = {name: until for name, until in self._rests.items() if until > now}
            until = now + min(seconds, _LONGEST_REST)
            self._rests[model] = max(until, self._rests.get(model, 0.0))

    def rest_of(self, model: str) -> float:
        """Seconds for which a model is still to be left alone."""
        if not self._rests:
            return 0.0
        with self._lock:
            return max(0.0, self._rests.get(model, 0.0) - self._clock())

    def wait(self, provider: str) -> float:
        """Seconds until `provider` may be asked; 0 lets the caller in, who then has to tell how it went.

        When the pause is over one caller is let in. The others wait until it told, or for another pause: a caller
        that died must not keep a circuit open for ever.
        """
        with self._lock:
            circuit = self._circuits.get(provider)
            if circuit is None or circuit.opened is None:
                return 0.0
            now, pause = self._clock(), self.settings.pause
            since = circuit.opened if circuit.probe is None else circuit.probe
            if now - since < pause:
                return pause - (now - since)
            circuit.probe = now
            return 0.0

    def succeeded(self, provider: str) -> None:
        """It answered. That closes an open circuit."""
        with self._lock:
            circuit = self._circuits.get(provider)
            if circuit is None:
                return
            if circuit.opened is not None:
                del self._circuits[provider]
            else:
                self._count(circuit, False)

    def failed(self, provider: str) -> None:
        """It did not answer."""
        with self._lock:
            circuit = self._circuits.setdefault(provider, _Circuit())
            self._count(circuit, True)
            full = circuit.failures >= self.settings.failures
            if circuit.probe is not None or (
                full and circuit.failures >= self.settings.share * len(circuit.told)
            ):
                circuit.opened, circuit.probe = self._clock(), None
                circuit.told.clear()
                circuit.failures = 0

    def _count(self, circuit: _Circuit, failed: bool) -> None:
        now, told = self._clock(), circuit.told
        told.append((now, failed))
        circuit.failures += failed
        while now - told[0][0] > self.settings.window or len(told) > _MOST_REMEMBERED:
            circuit.failures -= told.popleft()[1]

    def untold(self, provider: str) -> None:
        """The call was given up for a reason that says nothing of the provider; another may probe."""
        with self._lock:
            circuit = self._circuits.get(provider)
            if circuit is not None:
                circuit.probe = None

    def state(self, provider: str) -> str:
        """`closed` (it is asked), `open` (it is left alone) or `half-open` (one call tries it)."""
        with self._lock:
            circuit = self._circuits.get(provider)
            if circuit is None or circuit.opened is None:
                return "closed"
            return "half-open" if circuit.probe is not None else "open"


SHARED = Breakers()
"""The circuits of this process."""


def provider_of(model: LanguageModel) -> str:
    """Who runs a model: its own word for it, this machine, the host of its address, or what stands before the /."""
    if model.local:
        return HERE
    told = getattr(model, "provider", None)
    if isinstance(told, str) and told:
        return told
    return provider_in(model.name)


def provider_in(name: str) -> str:
    """The provider that a remote model's name tells: `openai` of openai/gpt-4o-mini, HOST:PORT of an address."""
    if "://" in name:
        from yunque.llm import providers

        return providers.provider_of(name).lower()
    return name.partition("/")[0]
