"""What the processes of one run agree on. `torchrun --nproc-per-node 2 -m yunque train ...` starts several: each is
given the same command and works out the same data, and all of them share one workspace folder.

The first process alone writes: the run's folder, checkpoints, artifacts, the screen. What it made goes to the others
through the store at which they met; numbers of a step are added up. When a process fails, those that wait for it end
too, and one of them tells why.
"""

import atexit
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter
from torch import Tensor, distributed
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from yunque.errors import UserError
from yunque.processes import rank, world_size

T = TypeVar("T")

# How long one process waits for another that still lives.
_PATIENCE = timedelta(minutes=30)
_LOOKING_EVERY = 0.1
_GOODBYE_SECONDS = 10.0
_LOST = "another process of this run ended; the same command goes on from the newest checkpoint"
_numbers = count()


@lru_cache(maxsize=1)
def meet() -> Store:
    """Meet the other processes, once; the store that all of them reach."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store: Store
        store, number, size = next(rendezvous("env://", timeout=_PATIENCE))
        distributed.init_process_group(
            backend,
            store=PrefixStore("group", store),
            rank=number,
            world_size=size,
            timeout=_PATIENCE,
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the {world_size()} processes of this run did not find one another ({reason}): "
            "start them with torchrun, or unset WORLD_SIZE"
        ) from None
    atexit.register(_leave, store)
    return store


def _leave(store: Store) -> None:
    """Let the others read what was made last: the store may end with this process."""
    last, until = next(_numbers) - 1, time.monotonic() + _GOODBYE_SECONDS
    waiting = rank() == 0 and last >= 0
    try:
        while waiting and time.monotonic() < until and store.add(f"made/{last}/read", 0) < world_size() - 1:
            time.sleep(_LOOKING_EVERY / 10)
        distributed.destroy_process_group()
    except RuntimeError:
        pass  # the others are gone


def first_makes(make: Callable[[], T], kind: Any) -> T:
    """What `make` gives in the first process, in every one; a UserError there is one everywhere.

    Every process has to come here in the same order. In a run of one process it is `make()`. It goes to the others as
    JSON, and `kind` is the type of it (pydantic's: dataclasses, tuples and the like).
    """
    if world_size() == 1:
        return make()
    store, key, adapter = meet(), f"made/{next(_numbers)}", TypeAdapter[T](kind)
    if rank() == 0:
        try:
            made = make()
        except BaseException as error:
            store.set(key, json.dumps({"error": str(error) if isinstance(error, UserError) else _LOST}))
            raise
        store.set(key, json.dumps({"made": adapter.dump_python(made, mode="json")}))
        return made
    with peers():
        while not store.check([key]):
            time.sleep(_LOOKING_EVERY)
        found = json.loads(store.get(key))
        store.add(f"{key}/read", 1)
    if "error" in found:
        raise UserError(found["error"])
    return adapter.validate_python(found["made"])


def added_up(numbers: Sequence[float]) -> list[float]:
    """The sums of these numbers over all processes."""
    if world_size() == 1:
        return list(numbers)
    sums = torch.tensor(numbers, dtype=torch.float64)
    with peers():
        distributed.all_reduce(sums)
    return sums.tolist()


def first_found(number: float | None) -> float | None:
    """The number of the first process, in every one; None where it has none, and then none has."""
    return None if number is None else added_up([0.0 if rank() else number])[0]


def anywhere(*flags: bool) -> tuple[bool, ...]:
    """For each flag, whether it is set in any process."""
    return tuple(number > 0 for number in added_up([float(flag) for flag in flags]))


@contextmanager
def peers() -> Iterator[None]:
    """Raise UserError where the connection to another process broke."""
    try:
        yield
    except RuntimeError as error:
        broken = isinstance(error, distributed.DistError) or "gloo" in str(error)
        if world_size() == 1 or not broken:
            raise
        raise UserError(_LOST) from None


def first_to_tell() -> bool:
    """Whether no process told of an error before: one sentence is enough."""
    if world_size() == 1:
        return True
    try:
        return meet().add("told", 1) == 1
    except (RuntimeError, UserError):
        return True


@contextmanager
def own_folder(folder: Path) -> Iterator[Path]:
    """Where this process writes what a run leaves: `folder` in the first, a passing one in the others."""
    if rank() == 0:
        yield folder
        return
    with TemporaryDirectory(prefix="yunque-") as passing:
        yield Path(passing)


def gathered(tensor: Tensor) -> Tensor:
    """A tensor as a whole, where it is in slices; every process has to come here."""
    if _in_slices(tensor):
        return tensor.detach().full_tensor()  # type: ignore[attr-defined, no-any-return]
    return tensor.detach()


def placed_like(whole: Tensor, other: Tensor) -> Tensor:
    """`whole` where `other` is, and in slices if that is."""
    if not _in_slices(other) or whole.shape != other.shape:
        return whole.to(other.device)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(other, DTensor)
    # Every process has read the same: each takes its own slice.
    return distribute_tensor(whole.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


def _in_slices(tensor: Tensor) -> bool:
    # A run of one process need not wait for DTensor to load.
    return hasattr(tensor, "full_tensor")
