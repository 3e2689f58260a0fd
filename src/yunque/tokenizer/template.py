"""Asks the process that renders chat templates."""

import json
from pathlib import Path
from typing import Any

from yunque.errors import UserError
from yunque.line_process import LineProcess, TooLong

SECONDS = 5.0
_PROCESS = LineProcess(
    Path(__file__).with_name("template_process.py"), b'{"template": "", "variables": {}}', SECONDS
)


def render(template: str, variables: dict[str, Any]) -> str:
    """The text that a template makes. Raises UserError when it fails, or takes too much time or memory."""
    try:
        answer = json.loads(_PROCESS.ask(json.dumps({"template": template, "variables": variables}).encode()))
    except TooLong:
        raise UserError(
            f"the chat template takes more than {_PROCESS.seconds:g} seconds or too much memory: it is not used"
        ) from None
    except OSError:
        raise UserError(
            "the process that renders chat templates does not start: is jinja2 installed?"
        ) from None
    if "error" in answer:
        raise UserError(f"the chat template {answer['error']}")
    return str(answer["text"])
