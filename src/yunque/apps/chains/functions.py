"""Functions that a YAML file names: `steps.py:extract`, in a Python file beside it. To open it is to run its code."""

import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from yunque.apps.chains.apart import apart, reason_of
from yunque.errors import UserError


def function_called(
    name: str,
    where: str,
    folder: Path | None,
    functions: Mapping[str, Callable[..., Any]],
    opened: list[Path] | None = None,
) -> Callable[..., Any]:
    """The function that a file calls `name`: one of `functions`, or `FILE.py:NAME` in `folder` or below it.

    A file that is opened is put into `opened`. Raises UserError naming `where`.
    """
    if name in functions:
        return functions[name]
    file, colon, attribute = name.rpartition(":")
    if not colon or not file.endswith(".py") or not attribute.isidentifier():
        known = f", or one of {', '.join(functions)}" if functions else ""
        raise UserError(f"{where}: {name!r} is no function: write FILE.py:NAME{known}")
    if folder is None:
        raise UserError(
            f"{where}: {name!r} cannot be opened here: Python files stand beside a file on disk only"
        )
    path = beside(folder, file, where)
    if opened is not None and path.is_file():
        opened.append(path)
    found = object_in(path.resolve(), attribute, where)
    if not callable(found):
        raise UserError(f"{where}: {attribute} in {path.name} is no function")
    function: Callable[..., Any] = found
    return function


def beside(folder: Path, name: str, where: str) -> Path:
    """Where a file lies that another one names: in the folder of that one, or below. Raises UserError naming `where`
    for any other place, and for a whole path, which would lead back here when both are kept elsewhere."""
    path = folder / os.path.normpath(name)
    if Path(name).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"{where}: {name!r} lies outside of {folder}: name a file as it lies there, or in a folder below"
        )
    return path


def object_in(path: Path, attribute: str, where: str) -> Any:
    """What a Python file calls `attribute`; runs the file. Raises UserError naming `where`."""
    if not path.is_file():
        raise UserError(f"{where}: there is no file {path}")
    # Loaded once: functions of one file see the same globals. Its types can be looked up by the module's name.
    name = f"yunque_file_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    module = sys.modules.get(name)
    if module is None or getattr(module, "__yunque_time__", None) != path.stat().st_mtime_ns:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            with apart():
                spec.loader.exec_module(module)
        except Exception as error:
            sys.modules.pop(name, None)
            raise UserError(f"{where}: {path} cannot be loaded ({reason_of(error)})") from error
        module.__dict__["__yunque_time__"] = path.stat().st_mtime_ns
    if not hasattr(module, attribute):
        raise UserError(f"{where}: {path.name} has nothing called {attribute!r}")
    return getattr(module, attribute)
