"""Models that fail as they are told, and what is read of a router's answers."""

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from yunque.generate.config import GenerationConfig
from yunque.llm import Chunk, Completion, Message, ModelUnavailable, Usage
from yunque.llm.breaker import Breakers
from yunque.llm.hedging import THREAD
from yunque.llm.retrying import RetrySettings
from yunque.llm.router import Router, RouterSettings, joined

CONFIG = GenerationConfig(max_new_tokens=50)
ASKED = [Message("user", "¿Cuánto pesa la maleta?")]
ANSWER = "La maleta pesa 23 kg."
FAULTS = ("status 502", "reset", "half", "garbage", "silence")


class Remote:
    """A remote model whose `faults` are told by a function of the number of the call (None: it answers)."""

    local = False

    def __init__(
        self, name: str, fault: Callable[[int], str | None] = lambda _: None, text: str = ANSWER
    ) -> None:
        self.name, self.text = name, text
        self.calls = 0
        self.closed = 0
        self._fault = fault
        self._lock = threading.Lock()

    def chat(self, messages: Sequence[Message], config: GenerationConfig) -> Completion:
        return joined(self.stream_chat(messages, config), self.name)

    def stream_chat(self, messages: Sequence[Message], config: GenerationConfig) -> Iterator[Chunk]:
        del messages, config
        with self._lock:
            self.calls += 1
            fault = self._fault(self.calls)
        words = self.text.split(" ")
        try:
            if fault in ("status 502", "reset", "garbage"):
                raise ModelUnavailable(f"{self.name} answered with {fault}", True)
            if fault == "silence":
                time.sleep(0.15)
                raise ModelUnavailable(f"{self.name} was silent", True)
            for number, word in enumerate(words):
                if fault == "half" and number == len(words) // 2:
                    return
                yield Chunk(word if number == 0 else " " + word)
            yield Chunk("", "stop", Usage(5, len(words)), self.name)
        finally:
            self.closed += 1

    def complete(self, prompt: object, config: GenerationConfig) -> Completion:
        return self.chat([Message("user", str(prompt))], config)

    def stream_complete(self, prompt: object, config: GenerationConfig) -> Iterator[Chunk]:
        return self.stream_chat([Message("user", str(prompt))], config)


def router_of(*models: object, **settings: object) -> Router:
    """A router over these models, the first the main one, that never really waits between attempts."""
    named = {model.name: model for model in models}  # type: ignore[attr-defined]
    first, *others = named
    given = {"retries": RetrySettings(attempts=2, first_wait=0), "fallbacks": tuple(others), **settings}
    return Router(RouterSettings(model=first, **given), named, Breakers())  # type: ignore[arg-type]


def read(chunks: Iterator[Chunk]) -> tuple[str, list[Chunk]]:
    """What a reader who heeds `restart` has at the end, and the chunks."""
    text, seen = "", []
    for chunk in chunks:
        text = "" if chunk.restart else text + chunk.text
        seen.append(chunk)
    return text, seen


def at_random(share: float, seed: int) -> Callable[[int], str | None]:
    drawn = random.Random(seed)
    # Silence is real time here, so it is drawn less often than the others.
    return lambda _: drawn.choices(FAULTS, (5, 5, 5, 5, 0.1))[0] if drawn.random() < share else None


def ended_threads() -> bool:
    for _ in range(200):
        if not any(thread.name == THREAD for thread in threading.enumerate()):
            return True
        time.sleep(0.02)
    return False


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now
