"""Unit tests: the model writes them, a sandbox runs them, and changed programs show whether they prove anything."""

import ast
import keyword
import re
from collections.abc import Mapping, Sequence
from typing import Any

from yunque.apps.prompts import Prompt
from yunque.apps.tasks.documenting import Ask
from yunque.apps.tasks.mutants import mutants_of
from yunque.apps.tasks.sandbox import SandboxLimits, TestRun, run_tests
from yunque.apps.tasks.steps import python_fault
from yunque.errors import UserError

_MOST_FEEDBACK = 5
_SUBJECT = "subject"
_TAKE_A_NAME = (
    *("patch", "multiple", "dict", "import_module", "__import__", "resolve_name", "getLogger"),
    *("assertLogs", "assertNoLogs"),
)


def check_tests(value: Any, values: Mapping[str, Any], language: str) -> str | None:
    """What is wrong with tests that were written, before any of them runs."""
    del values, language
    code = value["tests"]
    if fault := python_fault(code):
        return fault
    tree = ast.parse(code)
    imported = [one.name for node in ast.walk(tree) if isinstance(node, ast.Import) for one in node.names]
    imported += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    if "subject" not in imported:
        return "the tests do not import the module under test: it is called subject"
    if "pytest" in imported:
        return "only unittest is there: write no pytest"
    defined = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    if not any(node.name.startswith("test") for node in defined):
        return "there is no test: its name begins with test"
    return None


def write_unit_tests(
    ask: Ask,
    prompt: Prompt,
    values: Mapping[str, Any],
    attempts: int,
    limits: SandboxLimits = SandboxLimits(),
) -> tuple[Any, str, Sequence[str]]:
    """Tests for Python code with how each went, and whether they notice changes to the code.

    They are run as they are; where some fail, or none notices a change, the model is asked again with that, and the
    best of the attempts is what comes out. Raises UserError for code that is not Python.
    """
    code = str(values["code"])
    if fault := python_fault(code):
        raise UserError(f"unit-tests: {fault}")
    best: dict[str, Any] | None = None
    feedback: str | None = None
    for _ in range(attempts):
        answer = ask(prompt, {**values, "feedback": feedback})
        tried = proven(code, answer["tests"], int(values.get("mutants") or 8), limits)
        if best is None or _worth(tried) > _worth(best):
            best = tried
        if tried["proven"] and all(one["passed"] for one in tried["results"]):
            break
        feedback = _feedback(tried)
    assert best is not None
    passed = sum(one["passed"] for one in best["results"])
    noticed = sum(one["noticed"] for one in best["mutants"])
    notes = [f"{passed} of {len(best['results'])} tests pass in the sandbox"]
    if best["fault"]:
        notes.append(best["fault"])
    notes += [f"{one['name']} fails: {one['error']}" for one in best["results"] if not one["passed"]]
    if best["mutants"]:
        notes.append(f"{noticed} of {len(best['mutants'])} changed programs are noticed")
    if not best["proven"]:
        notes.append("these tests prove nothing: none passes, or none fails where the code is changed")
    return best, best["tests"], notes


def proven(
    code: str, tests: str, most_mutants: int = 8, limits: SandboxLimits = SandboxLimits()
) -> dict[str, Any]:
    """How tests go on the code and on changed copies of it. They are proven when one passes on the code, and of those
    that pass one fails on a changed copy."""
    run = run_tests(code, tests, limits)
    passing, tried = run.passed, list[dict[str, Any]]()
    for mutant in mutants_of(code, most_mutants) if passing else []:
        changed = run_tests(mutant.code, tests, limits)
        tried.append({"line": mutant.line, "change": mutant.change, "noticed": _notices(passing, changed)})
    return {
        "tests": tests,
        "results": [one.as_dict() for one in run.results],
        "fault": run.fault,
        "mutants": tried,
        "proven": any(one["noticed"] for one in tried),
    }


def _notices(passing: frozenset[str], changed: TestRun) -> bool:
    return bool(passing - changed.passed)


def _worth(tried: Mapping[str, Any]) -> tuple[bool, float, int]:
    results = tried["results"]
    share = sum(one["passed"] for one in results) / len(results) if results else 0.0
    return tried["proven"], share, sum(one["noticed"] for one in tried["mutants"])


def _feedback(tried: Mapping[str, Any]) -> str:
    if tried["fault"]:
        return str(tried["fault"])
    failed = [f"{one['name']}: {one['error']}" for one in tried["results"] if not one["passed"]]
    if failed:
        return "\n".join(failed[:_MOST_FEEDBACK])
    missed = [f"line {one['line']}: {one['change']}" for one in tried["mutants"] if not one["noticed"]]
    return "No test fails when the code is changed:\n" + "\n".join(missed[:_MOST_FEEDBACK])


def is_module_name(name: str) -> bool:
    """Whether `import NAME` can be written; with points for a module in packages."""
    return all(part.isidentifier() and not keyword.iskeyword(part) for part in name.split("."))


def of_module(tests: str, code: str, name: str) -> str:
    """The tests with the module's own name instead of `subject`, where they import it and where a text names it or
    one of its own names (the target of a patch)."""
    tree = ast.parse(tests)
    own = {one.name for one in ast.walk(ast.parse(code)) if isinstance(one, _DEFINITIONS)}
    own |= {one.id for one in ast.walk(ast.parse(code)) if isinstance(one, ast.Name)}
    own |= {
        (one.asname or one.name).split(".")[0]
        for one in ast.walk(ast.parse(code))
        if isinstance(one, ast.alias)
    }
    targets = {id(one) for one in _module_texts(tree)}
    lines = [line.encode() for line in re.split(r"(?<=\n)", tests)]
    changes: list[tuple[int, int, bytes, bytes]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                if one.name == _SUBJECT:
                    new = name if one.asname or name == _SUBJECT else f"{name} as {_SUBJECT}"
                    changes.append((one.lineno, one.col_offset, b"", new.encode()))
        elif isinstance(node, ast.ImportFrom) and node.module == _SUBJECT and not node.level:
            changes.append((node.lineno, node.col_offset, rb"from\s+", name.encode()))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            first, _, after = node.value.partition(".")
            is_one = id(node) in targets or after.split(".")[0] in own
            if first == _SUBJECT and is_one and re.fullmatch(r"(\w+\.)*\w+", node.value):
                changes.append(
                    (node.lineno, node.col_offset, rb"[rRuUbB]*(?:\"\"\"|'''|\"|')", name.encode())
                )
    for line, column, before, instead in sorted(changes, reverse=True):
        start, rest = lines[line - 1][:column], lines[line - 1][column:]
        if found := re.match(b"(" + before + rb")subject\b", rest):
            lines[line - 1] = start + found[1] + instead + rest[found.end() :]
    return b"".join(lines).decode()


_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _module_texts(tree: ast.AST) -> list[ast.AST]:
    """The texts that name a module: the first one that patch() and its like take, and keys of sys.modules."""
    found: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in _TAKE_A_NAME:
                found += node.args[:1]
                found += [one.value for one in node.keywords if one.arg in ("target", "name", "logger")]
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("modules"):
            found.append(node.slice)
    return found
