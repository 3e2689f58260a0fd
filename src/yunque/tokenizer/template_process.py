"""Renders chat templates in a process of its own, which its parent can stop.

A template is a program that came with a model. Jinja's sandbox keeps it from Python's internals, but not from using
all time and memory, and no limit inside of one process holds against every way to do that. Run as a script: one JSON
object a line on standard input, one on standard output. It imports nothing of this package, so that it starts fast.
"""

import json
import sys
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_BYTES = 1_000_000_000
LONGEST_TEXT = 16_000_000


class _Refused(jinja2.TemplateError):
    """The template itself says no, with `raise_exception`."""


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: what stands inside is the model's to write; it is put in marks."""

    tags = {"generation"}  # noqa: RUF012 (so that Jinja's class has it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        marks: list[nodes.Expr] = [nodes.ContextReference()]
        return nodes.CallBlock(self.call_method("_marked", marks), [], [], body).set_lineno(line)

    def _marked(self, context: Any, caller: Callable[[], str]) -> str:
        return f"{context.get('_opened', '')}{caller()}{context.get('_closed', '')}"


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own escapes <, > and & for HTML, which no model has learned.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise _Refused(str(message))


def _environment() -> ImmutableSandboxedEnvironment:
    """What templates expect: the settings and names that Hugging Face offers to them."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


@lru_cache(maxsize=32)
def _compiled(template: str) -> jinja2.Template:
    return _environment().from_string(template)


def render(template: str, variables: dict[str, Any]) -> dict[str, str]:
    """The text as {"text": ...}, or {"error": why not} in a few words."""
    parts: list[str] = []
    length = 0
    try:
        for part in _compiled(template).generate(**variables):
            parts.append(part)
            length += len(part)
            if length > LONGEST_TEXT:
                return {"error": f"makes a text of more than {LONGEST_TEXT:,} characters"}
        return {"text": "".join(parts)}
    except _Refused as error:
        return {"error": f"refuses this conversation: {error.message}"}
    except jinja2.exceptions.SecurityError as error:
        return {"error": f"does what a template may not do: {error.message}"}
    except MemoryError:
        return {"error": "needs too much memory"}
    except RecursionError:
        return {"error": "calls itself without end"}
    except jinja2.TemplateSyntaxError as error:
        return {"error": f"is not a template: {error.message} (line {error.lineno})"}
    except Exception as error:  # a template can make Python raise anything
        return {"error": f"fails: {error}"[:300]}


def main() -> None:
    """Answer requests until standard input ends."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    except (ImportError, ValueError, OSError):  # not on every system; the time limit holds everywhere
        pass
    for line in sys.stdin.buffer:
        request = json.loads(line)
        answer = render(request["template"], request["variables"])
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
