"""Which process of a run this one is: several share it where torchrun started them, and its environment tells."""

import os

from yunque.errors import UserError


def world_size() -> int:
    """How many processes share a run."""
    return _number("WORLD_SIZE", 1)


def rank() -> int:
    """The number of this process among them; the first one, 0, does all the writing."""
    return _number("RANK", 0) if world_size() > 1 else 0


def local_rank() -> int:
    """The number of this process among those on the same machine."""
    return _number("LOCAL_RANK", rank()) if world_size() > 1 else 0


def local_world_size() -> int:
    """How many processes share this machine."""
    return _number("LOCAL_WORLD_SIZE", world_size()) if world_size() > 1 else 1


def _number(name: str, usual: int) -> int:
    told = os.environ.get(name) or str(usual)
    if not told.isdecimal():
        raise UserError(f"{name}={told!r} in the environment is not a number: torchrun sets it, or unset it")
    return int(told)
