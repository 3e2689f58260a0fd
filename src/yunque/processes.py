"""Which process of a run this one is: several share it where torchrun started them, and its environment tells."""

import os


def world_size() -> int:
    """How many processes share a run."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def rank() -> int:
    """The number of this process among them; the first one, 0, does all the writing."""
    return int(os.environ.get("RANK", 0)) if world_size() > 1 else 0


def local_rank() -> int:
    """The number of this process among those on the same machine."""
    return int(os.environ.get("LOCAL_RANK", rank())) if world_size() > 1 else 0
