"""What every format needs: the files of a checkpoint by name, JSON that is what it seems, and a tensor's facts."""

import json
import math
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from yunque.errors import UserError

Files = Path | Mapping[str, Path]

# A configuration has kilobytes, the index of the largest model some megabytes.
_LARGEST_JSON = 64 << 20


@dataclass(frozen=True)
class TensorEntry:
    """What is known of a tensor before it is read; `file` is the name of the file that holds it.

    `packed` names another form that it has in the file (Q8_0), and its bytes there.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    file: str
    packed: tuple[str, int] | None = None

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """How many bytes it takes once read."""
        return self.count * self.dtype.itemsize


def place(files: Files) -> str:
    """Where `files` are, for messages."""
    if isinstance(files, Path):
        return str(files)
    parents = {str(path.parent) for path in files.values()}
    return parents.pop() if len(parents) == 1 else "the model"


def has_file(files: Files, name: str) -> bool:
    """Whether there is something called `name`, of any kind."""
    return (
        (files / name).is_symlink() or (files / name).exists() if isinstance(files, Path) else name in files
    )


def checkpoint_file(files: Files, name: str) -> Path:
    """The path of the file called `name`; raises UserError unless it is a plain name and an ordinary file.

    In a folder, a link may not lead out of it (in the cache of huggingface_hub: not out of that repository).
    """
    check_plain(files, name)
    if not isinstance(files, Path):
        if name not in files:
            raise UserError(f"the model has no file {name}")
        return ordinary_file(files[name])
    return _inside(files, files / name)


def file_below(folder: Path, below: str, name: str) -> Path:
    """The same for the file `name` of the folder `below`, which lies in the checkpoint's own."""
    check_plain(folder, below)
    check_plain(folder, name)
    return _inside(folder, folder / below / name)


def check_plain(files: Files, name: str) -> None:
    """Raise UserError unless `name` is that of a file or folder, and no path that leads elsewhere."""
    if not name or name in (".", "..") or any(letter in name for letter in "/\\\0"):
        raise UserError(
            f"{place(files)}: {name!r} is not a plain file name: a model's files lie in its own folder"
        )


def _inside(folder: Path, path: Path) -> Path:
    ordinary_file(path)
    if not path.resolve().is_relative_to(_home(folder.resolve())):
        raise UserError(f"{path}: is a link that leads out of the folder: put the file itself there")
    return path


def _home(folder: Path) -> Path:
    """The folder that links may not leave: in a hub cache, `snapshots/REVISION` links to `blobs` beside it."""
    repository = folder.parent.parent
    in_cache = folder.parent.name == "snapshots" and repository.name.startswith("models--")
    return repository if in_cache else folder


def ordinary_file(path: Path) -> Path:
    """`path`, if it is a file that can be read (no folder, pipe or device); raises UserError otherwise."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if stat.S_ISDIR(mode):
        raise UserError(f"{path}: is a folder where a file is wanted")
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: is not an ordinary file")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises UserError for what is no JSON object, and for what readers understand differently: a field given
    twice, numbers that are not finite, values nested without end.
    """
    ordinary_file(path)
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise UserError(f"{path}: is far too large for this file ({path.stat().st_size:,} bytes)")
        return parse_json(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def parse_json(content: bytes, where: str) -> dict[str, Any]:
    """The same as `read_json` of bytes; `where` names them in messages."""

    def once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        read = dict(pairs)
        if len(read) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"{where}: the field {twice[:80]!r} is given twice")
        return read

    def refused(text: str) -> NoReturn:
        raise UserError(f"{where}: {text[:80]} is not a number that JSON can hold")

    def finite(text: str) -> float:
        number = float(text)
        return number if math.isfinite(number) else refused(text)

    try:
        read = json.loads(
            content.decode("utf-8"), object_pairs_hook=once, parse_constant=refused, parse_float=finite
        )
    except RecursionError:
        raise UserError(f"{where}: its values are nested far too deep") from None
    except ValueError:
        raise UserError(f"{where}: is not valid JSON") from None
    if not isinstance(read, dict):
        raise UserError(f"{where}: must hold a JSON object, not a {type(read).__name__}")
    return read
