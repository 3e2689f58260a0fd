"""Models that are opened when they are asked for, as many as there is memory for.

Where there is no room for another, the one that nobody used for the longest time, and nobody uses now, is closed.
"""

import ctypes
import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from yunque.errors import UserError
from yunque.machine import machine_memory
from yunque.server.account import account
from yunque.server.errors import ApiError
from yunque.workspace import Artifact, Workspace

_ROOM_SECONDS = 30.0
_LENGTH_PLANNED = 4096
# As the engine's pool of blocks has it, where it may.
_MOST_TEXTS = 64
_SHARE = 8


class Closable(Protocol):
    """What can be opened and closed again; where it has a method `memory_bytes`, that tells what it holds."""

    def close(self) -> None:
        """Give everything back."""
        ...


T = TypeVar("T", bound=Closable)


@dataclass(frozen=True)
class Needs:
    """Bytes that a model cannot do without, and bytes that it takes if it may."""

    least: int
    usual: int


@dataclass
class _Place(Generic[T]):
    """A model's place in memory. Nobody else may have it while it is opened (no `target` yet) or closed."""

    bytes: int
    target: T | None = None
    users: int = 0
    last_used: float = 0.0
    changing: bool = True


class Loading(Generic[T]):
    """What is open, under a limit of memory. May be used from many threads.

    `planned(ref)` says beforehand how many bytes one will hold; `opened(ref)` opens it, in no more than
    `granted(ref)`, and may take its time. Both may raise UserError. `most_bytes` None is no limit.
    """

    def __init__(
        self,
        opened: Callable[[str], T],
        planned: Callable[[str], Needs],
        most_bytes: int | None,
        room_seconds: float = _ROOM_SECONDS,
    ) -> None:
        self._opened = opened
        self._planned = planned
        self.most_bytes = most_bytes
        self._room_seconds = room_seconds
        self._places: dict[str, _Place[T]] = {}
        self._changed = threading.Condition()
        self._ended = False

    @contextmanager
    def use(self, ref: str) -> Iterator[T]:
        """The one called `ref`, open, and kept open while this lasts.

        Raises ApiError: 400 for what is larger than the limit, 503 where no room came free in time.
        """
        place = self._entered(ref)
        try:
            assert place.target is not None
            yield place.target
        finally:
            self._leave(place)

    def granted(self, ref: str) -> int:
        """The bytes that are set apart for one that is being opened, or that it holds."""
        with self._changed:
            return self._places[ref].bytes

    def open_now(self) -> dict[str, int]:
        """What is open, and the bytes of each."""
        with self._changed:
            return {ref: place.bytes for ref, place in self._places.items() if place.target}

    def targets(self) -> dict[str, T]:
        """What is open."""
        with self._changed:
            return {ref: place.target for ref, place in self._places.items() if place.target}

    def drop(self, ref: str) -> bool:
        """Close the one called `ref` if it is open and nobody uses it; whether it was."""
        with self._changed:
            place = self._places.get(ref)
            if place is None or place.changing or place.users:
                return False
            place.changing = True
        self._close(ref, place)
        return True

    def close(self, patience: float | None = None) -> None:
        """Close all, and open none any more. What is used is closed too: its users are told to end before.

        What is not closed after `patience` seconds (a model in the middle of a long step) is waited for no more.
        """
        with self._changed:
            self._ended = True
            places = [(ref, place) for ref, place in self._places.items() if not place.changing]
            for _, place in places:
                place.changing = True
            self._changed.notify_all()
        threads = [threading.Thread(target=self._close, args=each, daemon=True) for each in places]
        for thread in threads:
            thread.start()
        until = None if patience is None else time.monotonic() + patience
        for thread in threads:
            thread.join(None if until is None else max(0.0, until - time.monotonic()))

    def reopen(self) -> None:
        """Open again what is asked for, after `close`."""
        with self._changed:
            self._ended = False

    def _entered(self, ref: str) -> _Place[T]:
        """The place of `ref`, with one user more."""
        wanted: Needs | None = None
        room_until = time.monotonic() + self._room_seconds
        while True:
            with self._changed:
                if self._ended:
                    raise ApiError(503, "the server is shutting down", code="shutting_down")
                place, idle = self._places.get(ref), None
                if place and not place.changing:
                    place.users += 1
                    return place
                if place:
                    self._wait(None)
                    continue
                if wanted is not None and (room := self._room()) >= wanted.least:
                    # Half of what is free beyond its least is left for others.
                    granted = min(wanted.usual, wanted.least + (room - wanted.least) // 2)
                    place = self._places[ref] = _Place(granted, users=1)
                    break
                if wanted is not None:
                    idle = self._idlest()
                    if idle is None:
                        self._wait(room_until)
                        continue
                    self._places[idle].changing = True
            if idle:
                self._close(idle, self._places[idle])
            else:
                wanted = self._plan(ref)
        self._open(ref, place)
        return place

    def _plan(self, ref: str) -> Needs:
        wanted = self._planned(ref)
        if self.most_bytes is not None and wanted.least > self.most_bytes:
            raise _too_large(ref, wanted.least, self.most_bytes)
        return wanted

    def _room(self) -> int:
        """Bytes that nobody holds and none are set apart for; below 0 where more is held than was planned. To be
        called with the lock."""
        taken = sum(place.bytes for place in self._places.values())
        return sys.maxsize if self.most_bytes is None else self.most_bytes - taken

    def _idlest(self) -> str | None:
        """The one that nobody uses, and nobody used for the longest time. To be called with the lock."""
        idle = [ref for ref, place in self._places.items() if not place.changing and not place.users]
        return min(idle, key=lambda ref: self._places[ref].last_used, default=None)

    def _wait(self, room_until: float | None) -> None:
        """Wait for a change. Raises ApiError where it was waited for long enough."""
        account().check()
        if room_until is not None and time.monotonic() >= room_until:
            message = "there is no memory for this model now: the other models that are open are all in use"
            raise ApiError(503, message, "model", "model_unavailable", {"Retry-After": "10"})
        self._changed.wait(0.5)

    def _open(self, ref: str, place: _Place[T]) -> None:
        try:
            target = self._opened(ref)
            held = _memory_of(target)
            if self.most_bytes is not None and held > self.most_bytes:
                target.close()
                raise _too_large(ref, held, self.most_bytes)
        except BaseException:
            with self._changed:
                del self._places[ref]
                self._changed.notify_all()
            raise
        with self._changed:
            place.bytes = held or place.bytes
            place.target, place.changing = target, False
            self._changed.notify_all()
        try:
            # It may hold more than was planned.
            while (idle := self._superfluous()) and self.drop(idle):
                pass
        except BaseException:
            self._leave(place)
            raise

    def _superfluous(self) -> str | None:
        """The one to be closed where more is held than may be."""
        with self._changed:
            return self._idlest() if self._room() < 0 else None

    def _leave(self, place: _Place[T]) -> None:
        """It has one user less."""
        with self._changed:
            place.users -= 1
            place.last_used = time.monotonic()
            self._changed.notify_all()

    def _close(self, ref: str, place: _Place[T]) -> None:
        """Close what is in a place that was marked as changing, and give up the place."""
        target, place.target = place.target, None
        try:
            if target is not None:
                target.close()
        finally:
            del target
            _give_back()
            with self._changed:
                del self._places[ref]
                self._changed.notify_all()


def planned_bytes(workspace: Workspace, artifact: Artifact) -> Needs:
    """What a model, or an adapter with its base, will hold: its weights, and the cache of one text at least.

    An app holds nothing: its model is opened for itself. Nothing is planned where the files do not tell; opening them
    says why.
    """
    from yunque.model.checkpoint import read_configuration
    from yunque.model.memory import plan_holding

    if artifact.kind == "adapter":
        parents = [workspace.get(ref, "model") for ref in artifact.parents if ref.startswith("model/")]
        own = _bytes_on_disk(workspace, artifact)
        needs = [planned_bytes(workspace, parent) for parent in parents]
        return Needs(own + sum(each.least for each in needs), own + sum(each.usual for each in needs))
    if artifact.kind != "model":
        return Needs(0, 0)
    try:
        config = read_configuration(workspace.files(artifact))
        held = plan_holding(config)
    except UserError:
        return Needs(0, 0)
    one = held.total(1, config.context or _LENGTH_PLANNED) - held.weight_bytes
    many = min(_MOST_TEXTS * one, (machine_memory() or 0) // _SHARE)
    return Needs(held.weight_bytes + one, held.weight_bytes + max(one, many))


def _bytes_on_disk(workspace: Workspace, artifact: Artifact) -> int:
    return sum(file.stat().st_size for file in workspace.files(artifact).values())


def _memory_of(target: object) -> int:
    """What a target says that it holds; 0 where it does not say."""
    tell = getattr(target, "memory_bytes", None)
    return int(tell()) if tell else 0


def _give_back() -> None:
    """Let go what nobody holds, and give its memory back to the system (which malloc would keep for later)."""
    gc.collect()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def _too_large(ref: str, wanted: int, most: int) -> ApiError:
    message = (
        f"{ref} takes {_size(wanted)} of memory, and this server may hold {_size(most)}: "
        "start it with more (--memory), or quantize the model"
    )
    return ApiError(400, message, "model", "model_too_large")


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"
