"""A corpus that every machine has: Python's language reference and the docstrings of its standard library.

The library's source is parsed, never imported: hundreds of modules would run, and some would open windows.
"""

import ast
import hashlib
import os
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from yunque.data.readers import Found, Piece
from yunque.data.readers.piece import packed
from yunque.errors import UserError

PYTHON_DOCS = "python:docs"
_SHORTEST = 40
_LEFT_OUT = {
    "test",
    "tests",
    "idlelib",
    "idle_test",
    "site-packages",
    "dist-packages",
    "turtledemo",
    "__pycache__",
}
_TOPICS = "pydoc_data/topics.py"


@dataclass(frozen=True)
class Documented:
    """The documentation in one module: SHA-256 of its source, and (group, piece) pairs."""

    sha256: str
    pieces: Iterator[tuple[str, Piece]]


def find_modules() -> list[Found]:
    """The source files of the standard library, tests and bundled applications left out, in sorted order."""
    library = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for folder, folders, files in os.walk(library):
        # Pruned here, so that the hundreds of packages a user installed are not walked through.
        folders[:] = sorted(
            name for name in folders if name not in _LEFT_OUT and not name.startswith("config-")
        )
        inside = Path(folder)
        found += [inside / name for name in files if name.endswith(".py")]
    modules = [Found(path, f"python:{path.relative_to(library).as_posix()}") for path in found]
    if not modules:
        raise UserError(f"{PYTHON_DOCS}: this Python has no library source in {library}")
    return sorted(modules, key=lambda module: module.name)


def read_module(found: Found) -> Documented:
    """The docstrings of one module of at least 40 characters, each at its qualified name.

    Of `pydoc_data.topics`, the language reference, each topic is a group of its own. Raises SyntaxError.
    """
    name = found.name.removeprefix("python:")
    source = found.path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    sha256 = hashlib.sha256(source).hexdigest()
    if name == _TOPICS:
        return Documented(sha256, _topics(tree))
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    pieces = ((module, piece) for place, text in _docstrings(tree, module) for piece in packed([text], place))
    return Documented(sha256, pieces)


def _docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text and len(text) >= _SHORTEST:
            yield name, text
    elif not isinstance(node, ast.If | ast.Try):
        return
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(child, f"{name}.{child.name}")
        else:
            yield from _docstrings(child, name)


def _topics(tree: ast.Module) -> Iterator[tuple[str, Piece]]:
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            topics: dict[str, str] = ast.literal_eval(statement.value)
            for topic, text in sorted(topics.items()):
                for piece in packed(text.split("\n\n"), topic):
                    yield f"topic:{topic}", piece
