"""The steps of a pickle that holds tensors, followed without carrying any of them out."""

import io
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

_STORAGES: Mapping[str, torch.dtype] = {
    "torch DoubleStorage": torch.float64,
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
}
_ORDERED, _TENSOR, _PARAMETER = (
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
)
_CONSTANTS: Mapping[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINSTRING", "BINFLOAT"})
# A tensor takes some forty steps. No step makes more than one thing: this bounds the stack and the memo too.
_MOST_STEPS = 1_000_000


class UnknownStep(Exception):
    """The pickle does something that laying out tensors does not need."""


@dataclass(frozen=True)
class Storage:
    """A run of `count` numbers, kept in the file under `key`."""

    dtype: torch.dtype
    key: str
    count: int


@dataclass(frozen=True)
class Laid:
    """A tensor as it lies on a storage; offset and stride count numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class _Name:
    """The name of a function or class. Nothing is imported for it."""

    text: str


def follow_steps(steps: io.BytesIO, most: int = _MOST_STEPS) -> Any:
    """What the next pickle in `steps` describes: plain values, with `Laid` in the place of tensors.

    Raises UnknownStep for any function but those that make tensors; ValueError, TypeError or LookupError for bytes
    that are no pickle, or one of more than `most` steps.
    """
    return _Machine().run(steps, most)


class _Machine:
    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._steps: Mapping[str, Callable[[], None]] = {
            "MARK": self._mark,
            "EMPTY_DICT": lambda: self._push({}),
            "EMPTY_LIST": lambda: self._push([]),
            "EMPTY_TUPLE": lambda: self._push(()),
            "TUPLE": lambda: self._push(tuple(self._since_mark())),
            "TUPLE1": lambda: self._push(tuple(self._pop(1))),
            "TUPLE2": lambda: self._push(tuple(self._pop(2))),
            "TUPLE3": lambda: self._push(tuple(self._pop(3))),
            "APPEND": lambda: self._append(self._pop(1)),
            "APPENDS": lambda: self._append(self._since_mark()),
            "SETITEM": lambda: self._set(self._pop(2)),
            "SETITEMS": lambda: self._set(self._since_mark()),
            "BINPERSID": lambda: self._push(_storage(*self._pop(1))),
            "REDUCE": lambda: self._push(_made(*self._pop(2))),
            "BUILD": self._build,
        }

    def run(self, steps: io.BytesIO, most: int) -> Any:
        for taken, (opcode, argument, _) in enumerate(pickletools.genops(steps)):
            name = opcode.name
            if taken >= most:
                raise ValueError(f"its pickle has more than {most:,} steps")
            if name == "STOP":
                (result,) = self._stack
                return result
            number = argument if isinstance(argument, int) else -1
            if name in self._steps:
                self._steps[name]()
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name])
            elif name in _LITERALS:
                self._stack.append(argument)
            elif name in ("BINPUT", "LONG_BINPUT"):
                self._memo[number] = self._stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                self._stack.append(self._memo[number])
            elif name == "GLOBAL":
                self._stack.append(_known(str(argument)))
            elif name != "PROTO":
                raise UnknownStep(f"its pickle has the step {name}")
        raise EOFError("the pickle is cut off")

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise ValueError("the pickle takes what is not there")
        taken = self._stack[-count:]
        del self._stack[-count:]
        return taken

    def _mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        taken, self._stack = self._stack, self._below.pop()
        return taken

    def _append(self, values: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise ValueError("the pickle appends to what is no list")
        self._stack[-1].extend(values)

    def _set(self, pairs: list[Any]) -> None:
        if not isinstance(self._stack[-1], dict) or len(pairs) % 2:
            raise ValueError("the pickle sets items of what is no dictionary")
        if not all(isinstance(key, str | int) for key in pairs[::2]):
            raise ValueError("the pickle has a dictionary whose keys are no names")
        self._stack[-1].update(zip(pairs[::2], pairs[1::2], strict=True))

    def _build(self) -> None:
        # An OrderedDict of torch carries the versions of its modules; nobody reads them.
        self._pop(1)
        if not isinstance(self._stack[-1], dict):
            raise UnknownStep("its pickle changes an object")


def _known(name: str) -> _Name:
    if name not in _STORAGES and name not in (_ORDERED, _TENSOR, _PARAMETER):
        raise UnknownStep(f"its pickle calls {name.replace(' ', '.')[:120]}")
    return _Name(name)


def _storage(saved: Any) -> Storage:
    """The storage that a persistent id names: ("storage", type, key, location, count), in old files a view too."""
    if (
        not isinstance(saved, tuple)
        or len(saved) not in (5, 6)
        or saved[0] != "storage"
        or saved[5:] not in ((), (None,))
    ):
        raise ValueError("a storage is not described as torch does")
    _, kind, key, _, count = saved[:5]
    if (
        not isinstance(kind, _Name)
        or kind.text not in _STORAGES
        or not isinstance(key, str)
        or not _size(count)
    ):
        raise ValueError("a storage is not described as torch does")
    return Storage(_STORAGES[kind.text], key, count)


def _made(function: Any, arguments: Any) -> Any:
    """What a call makes, as a description."""
    name = function.text if isinstance(function, _Name) else ""
    if name == _ORDERED and arguments in ((), ([],)):
        return {}
    if name == _PARAMETER and isinstance(arguments[0], Laid):
        return arguments[0]
    if name == _TENSOR:
        storage, offset, shape, stride = arguments[:4]
        sizes = (offset, *shape, *stride)
        if isinstance(storage, Storage) and all(map(_size, sizes)) and len(shape) == len(stride):
            return Laid(storage, offset, tuple(shape), tuple(stride))
    raise ValueError("a tensor is not described as torch does")


def _size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62
