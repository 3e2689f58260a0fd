"""Renders prompts in a process of its own, which its parent can stop.

A template is a program. Jinja's sandbox keeps it from Python's internals, but not from using all time and memory, and
no limit inside of one process holds against every way to do that. Run as a script: one JSON object a line on standard
input, one on standard output. It imports nothing of this package, so that it starts fast.
"""

import json
import sys
from functools import lru_cache
from types import TracebackType
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_BYTES = 1_000_000_000
LONGEST_TEXT = 16_000_000


def _tojson(value: Any, indent: int | None = None) -> str:
    # Jinja's own escapes <, > and & for HTML, which a model would have to read.
    return json.dumps(value, ensure_ascii=False, indent=indent)


_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_ENVIRONMENT.filters["tojson"] = _tojson
# The same inputs make the same prompt, or its hash would say nothing.
del _ENVIRONMENT.filters["random"], _ENVIRONMENT.globals["lipsum"]


@lru_cache(maxsize=64)
def _compiled(template: str) -> jinja2.Template:
    return _ENVIRONMENT.from_string(template)


def examine(template: str) -> dict[str, Any]:
    """The names that a template takes from outside, each with its line, as {"names": ...}; or {"error": ...}.

    Here and not in the caller's process: to find them Jinja computes what is constant, `'a' * 10**10` among it.
    """
    try:
        tree = _ENVIRONMENT.parse(template)
        for kind in (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends):
            for node in tree.find_all(kind):
                return {
                    "error": "takes something from another file, and a prompt is one file",
                    "line": node.lineno,
                }
        names = meta.find_undeclared_variables(tree)
        lines = {name.name: name.lineno for name in tree.find_all(nodes.Name) if name.name in names}
        return {"names": lines}
    except Exception as error:
        return _fault(error)


def render(template: str, variables: dict[str, Any]) -> dict[str, Any]:
    """The text as {"text": ...}, or {"error": why not, "line": where} in a few words."""
    parts: list[str] = []
    length = 0
    try:
        for part in _compiled(template).generate(variables):
            parts.append(part)
            length += len(part)
            if length > LONGEST_TEXT:
                return {"error": f"makes a text of more than {LONGEST_TEXT:,} characters"}
        return {"text": "".join(parts).strip("\n")}
    except Exception as error:  # a template can make Python raise anything
        return _fault(error)


def _fault(error: Exception) -> dict[str, Any]:
    if isinstance(error, jinja2.TemplateSyntaxError):
        return {"error": f"is not valid: {error.message}", "line": error.lineno}
    if isinstance(error, jinja2.exceptions.SecurityError):
        return {"error": f"does what a template may not do: {error.message}", "line": _line(error)}
    if isinstance(error, MemoryError):
        return {"error": "needs too much memory", "line": _line(error)}
    if isinstance(error, RecursionError):
        return {"error": "calls itself, or is nested, without end"}
    return {"error": f"fails: {error}"[:300], "line": _line(error)}


def _line(error: Exception) -> int | None:
    """The line of the template that raised it."""
    line = None
    traceback: TracebackType | None = error.__traceback__
    while traceback:
        if traceback.tb_frame.f_code.co_filename == "<template>":
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


def main() -> None:
    """Answer requests until standard input ends."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    except (ImportError, ValueError, OSError):  # not on every system; the time limit holds everywhere
        pass
    for line in sys.stdin.buffer:
        request = json.loads(line)
        answers = []
        for template, variables in request:
            answers.append(examine(template) if variables is None else render(template, variables))
            if "error" in answers[-1]:
                break
        sys.stdout.buffer.write(json.dumps(answers).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
