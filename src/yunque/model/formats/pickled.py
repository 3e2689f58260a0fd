"""PyTorch's `.bin`: a pickle that says how tensors lie on storages, and the storages' bytes.

A pickle is a program. Here it is first read as a list of steps, none of which is carried out: only the few steps
that lay a tensor on a storage are known, everything else is refused. What they claim is held against the file
before memory is taken. Only then does `torch.load(weights_only=True)` open it.
"""

import io
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from yunque.errors import UserError
from yunque.model.formats.files import TensorEntry, ordinary_file
from yunque.model.formats.pickle_steps import Laid, Storage, UnknownStep, follow_steps

# Some 250 bytes for a tensor.
_LARGEST_PICKLE = 8 << 20
# Of the pickles before the tensors in a file of the old kind: a number, or a few facts of the machine.
_FEW_STEPS = 1_000
_ZIP_START = b"PK\x03\x04"
_ZIP_END = struct.Struct("<4s4H2LH")
_ZIP64_LOCATOR = struct.Struct("<4sLQL")
_ZIP64_END = struct.Struct("<4sQ2H2L4Q")
_FULL = 0xFFFFFFFF
# The first pickles of a file that torch wrote before version 1.6, and of some after.
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class _Damaged(Exception):
    """What the file says does not fit in it."""


# What reading bytes as what they are not ends in.
_SIGNS_OF_DAMAGE = (
    *(_Damaged, zipfile.BadZipFile, struct.error, EOFError, ValueError, LookupError),
    *(TypeError, RuntimeError, ArithmeticError, AttributeError),
)


@dataclass(frozen=True)
class _Content:
    """What a file says it holds: tensors, and how many bytes there are for each storage."""

    tensors: Mapping[str, Laid]
    storage_bytes: Mapping[str, int]


class PickledFile:
    """The tensors of one `.bin` file: mapped into memory, or read whole where the file is of the old kind.

    `resident_bytes` is what then stays in memory once a tensor was read.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.where = str(path)
        self._path = ordinary_file(path)
        try:
            with path.open("rb") as file:
                self._zipped = file.read(4) == _ZIP_START
            content = _zipped_content(path) if self._zipped else _legacy_content(path)
            self.entries = {
                tensor: _checked(tensor, laid, content.storage_bytes, name)
                for tensor, laid in content.tensors.items()
            }
        except UnknownStep as error:
            raise UserError(
                f"{path}: is more than numbers ({error}): opening it could run a program; "
                "get the model as safetensors"
            ) from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
        except _SIGNS_OF_DAMAGE as error:
            raise UserError(f"{path}: is damaged, or no checkpoint of PyTorch ({_short(error)})") from None
        self.resident_bytes = 0 if self._zipped else sum(content.storage_bytes.values())
        self._loaded: Mapping[str, Tensor] | None = None

    def read(self, name: str) -> Tensor:
        """The tensor called `name`; a view of a larger storage is copied out of it."""
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded[name].contiguous()

    def _load(self) -> Mapping[str, Tensor]:
        try:
            loaded = torch.load(self._path, map_location="cpu", weights_only=True, mmap=self._zipped)
        except Exception as error:  # torch raises many kinds for a file that it does not understand
            raise UserError(f"{self.where}: cannot be read ({_short(error)})") from None
        tensors: dict[str, Tensor] = {name: tensor.detach() for name, tensor in loaded.items()}
        for name, entry in self.entries.items():
            if name not in tensors or (tensors[name].shape, tensors[name].dtype) != (
                entry.shape,
                entry.dtype,
            ):
                raise UserError(f"{self.where}: the tensor {name!r} is not what the file says it is")
        return tensors


def _checked(name: str, laid: Laid, storage_bytes: Mapping[str, int], file: str) -> TensorEntry:
    """The tensor's facts, if its storage is as long as it says and the tensor lies inside of it."""
    storage = laid.storage
    if storage.count * storage.dtype.itemsize != storage_bytes.get(storage.key):
        raise _Damaged(f"the storage of {name!r} is not as long as it says")
    entry = TensorEntry(laid.shape, storage.dtype, file)
    reach = sum((size - 1) * step for size, step in zip(laid.shape, laid.stride, strict=True))
    # More numbers than the storage has would be made by repeating them: no trained weight is that.
    if entry.count and (laid.offset + reach >= storage.count or entry.count > storage.count):
        raise _Damaged(f"{name!r} does not fit in its storage")
    return entry


def _zipped_content(path: Path) -> _Content:
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        _check_directory(path, archive.start_dir, size)
        records = archive.infolist()
        names = {record.filename for record in records}
        if len(names) != len(records):
            raise _Damaged("a name is in the archive twice")
        folder = records[0].filename.partition("/")[0] if records else ""
        for record in records:
            if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
                raise _Damaged(f"{record.filename!r} is compressed, which torch never does")
            if record.header_offset + record.file_size > size or record.flag_bits & 1:
                raise _Damaged(f"{record.filename!r} does not fit in the file")
        if f"{folder}/data.pkl" not in names or f"{folder}/constants.pkl" in names:
            raise _Damaged("it holds no table of tensors")
        if f"{folder}/byteorder" in names and archive.read(f"{folder}/byteorder") != b"little":
            raise _Damaged("its numbers are big-endian")
        pickle = archive.getinfo(f"{folder}/data.pkl")
        if pickle.file_size > _LARGEST_PICKLE:
            raise _Damaged("its table of tensors is far too large")
        steps = io.BytesIO(archive.read(pickle))
        prefix = f"{folder}/data/"
        lengths = {
            record.filename.removeprefix(prefix): record.file_size
            for record in records
            if record.filename.startswith(prefix)
        }
    return _Content(_tensors(follow_steps(steps)), lengths)


def _check_directory(path: Path, found: int, size: int) -> None:
    """The list of records that Python read must be the one that torch will read: the one that the end points at."""
    with path.open("rb") as file:
        file.seek(size - _ZIP_END.size)
        mark, *_, offset, comment = _ZIP_END.unpack(file.read(_ZIP_END.size))
        if offset == _FULL:
            file.seek(size - _ZIP_END.size - _ZIP64_LOCATOR.size)
            _, _, end, _ = _ZIP64_LOCATOR.unpack(file.read(_ZIP64_LOCATOR.size))
            file.seek(end)
            offset = _ZIP64_END.unpack(file.read(_ZIP64_END.size))[-1]
    if mark != b"PK\x05\x06" or comment or offset != found:
        raise _Damaged("the list of its records is not where it should be")


def _legacy_content(path: Path) -> _Content:
    """Three pickles that say which format it is, the tensors, the storages' keys, then the storages one by one."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(min(size, _LARGEST_PICKLE))
    steps = io.BytesIO(start)
    if not start.startswith(b"\x80") or follow_steps(steps, _FEW_STEPS) != _LEGACY_MAGIC:
        raise _Damaged("it does not begin as one")
    protocol, machine = follow_steps(steps, _FEW_STEPS), follow_steps(steps, _FEW_STEPS)
    if protocol != _LEGACY_PROTOCOL or not isinstance(machine, dict):
        raise _Damaged("it is of a version that is not known")
    tensors = _tensors(follow_steps(steps))
    storages: dict[str, Storage] = {laid.storage.key: laid.storage for laid in tensors.values()}
    keys = follow_steps(steps)
    # A list inside of a list may hold itself, and would have no end as text.
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise _Damaged("its storages have no names")
    if sorted(keys) != sorted(storages):
        raise _Damaged("its storages are not those of its tensors")
    lengths = {key: storage.count * storage.dtype.itemsize for key, storage in storages.items()}
    if steps.tell() + sum(8 + length for length in lengths.values()) != size:
        raise _Damaged("its storages are not as long as they say: cut off?")
    return _Content(tensors, lengths)


def _tensors(value: object) -> dict[str, Laid]:
    if not isinstance(value, dict):
        raise _Damaged(f"it holds a {type(value).__name__} and not tensors by name")
    for name, laid in value.items():
        if not isinstance(name, str) or not isinstance(laid, Laid):
            raise _Damaged(f"{str(name)[:80]!r} is not a tensor")
    return value


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
