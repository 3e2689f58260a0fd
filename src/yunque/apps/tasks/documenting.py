"""Docstrings for Python: a model writes them, code puts them in place and proves that nothing else changed."""

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from yunque.apps.prompts import Prompt
from yunque.apps.tasks.steps import python_fault
from yunque.errors import UserError
from yunque.progress import Task as Bar

Ask = Callable[[Prompt, Mapping[str, Any]], Any]
_Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def write_docstrings(
    ask: Ask, prompt: Prompt, values: Mapping[str, Any], bar: Bar | None = None
) -> tuple[Any, str, Sequence[str]]:
    """The code with a docstring in each function and class that has none, what was written, and notes.

    Raises UserError for code that is not Python, or that lacks none.
    """
    code = str(values["code"])
    if fault := python_fault(code):
        raise UserError(f"docstrings: {fault}")
    names = [name for name, _ in lacking(ast.parse(code), bool(values.get("private")))]
    if not names:
        raise UserError("docstrings: every function and class has one already (private ones: --private true)")
    written: dict[str, str] = {}
    notes: list[str] = []
    for name in names:
        node = dict(lacking(ast.parse(code), True))[name]
        source = ast.get_source_segment(code, node) or ""
        answer = ask(prompt, {**values, "code": inspect.cleandoc(source), "name": name})
        documented = with_docstring(code, name, answer["docstring"])
        if documented is None:
            notes.append(f"{name}: left as it is, a docstring has no line of its own there")
        else:
            code, written[name] = documented, inspect.cleandoc(answer["docstring"])
        if bar:
            bar.advance(len(source), name)
    return {"code": code, "docstrings": written}, code, notes


def lacking(tree: ast.Module, private: bool) -> Iterator[tuple[str, _Documented]]:
    """The functions and classes without a docstring, by their dotted names; of one name the first."""
    seen: set[str] = set()
    waiting: list[tuple[str, ast.AST]] = [("", tree)]
    while waiting:
        above, node = waiting.pop(0)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{above}{child.name}"
                hidden = child.name.startswith("_") or (above and isinstance(node, ast.FunctionDef))
                if name not in seen and (private or not hidden) and ast.get_docstring(child) is None:
                    yield name, child
                seen.add(name)
                waiting.append((f"{name}.", child))
            elif isinstance(child, ast.If | ast.Try | ast.With):
                waiting.append((above, child))


def with_docstring(code: str, name: str, docstring: str) -> str | None:
    """The code with that docstring; None where it cannot stand there, or where anything else would change."""
    tree = ast.parse(code)
    node = dict(lacking(tree, True)).get(name)
    if node is None:
        return None
    first = node.body[0]
    line = min([first.lineno, *(one.lineno for one in getattr(first, "decorator_list", []))])
    lines = code.split("\n")
    indent = lines[line - 1][: len(lines[line - 1]) - len(lines[line - 1].lstrip())]
    if line <= node.lineno or indent.strip() or not indent:
        return None
    text = inspect.cleandoc(docstring).replace("\\", "\\\\")
    if '"""' in text or text.endswith('"'):
        text = text.replace('"', '\\"')
    told = text.split("\n")
    if len(told) > 1:
        told.append("")
    block = [f'{indent}"""{told[0]}', *(f"{indent}{one}" if one else "" for one in told[1:])]
    block[-1] = (block[-1] or indent) + '"""'
    made = "\n".join([*lines[: line - 1], *block, *lines[line - 1 :]])
    return made if _same_but_for(made, tree, docstring) else None


def _same_but_for(made: str, before: ast.Module, docstring: str) -> bool:
    """Whether the code is what it was, but for that docstring."""
    try:
        after = ast.parse(made)
    except (SyntaxError, ValueError):
        return False
    found = [node for node in ast.walk(after) if _docstring_of(node) == inspect.cleandoc(docstring)]
    for node in found:
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        body, node.body = node.body, node.body[1:]
        if ast.dump(after) == ast.dump(before):
            return True
        node.body = body
    return False


def _docstring_of(node: ast.AST) -> str | None:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return ast.get_docstring(node)
    return None
