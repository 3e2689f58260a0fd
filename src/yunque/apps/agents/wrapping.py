"""What tools return is data: it stands between marks that it cannot forge, and is cut to a length."""

import re

from yunque.errors import UserError

# Forms in which models write or are given calls and roles: a result that holds one could pass for the real thing.
_CONTROL = re.compile(
    r"<(?=\s*/?\s*(?:tool_call|tool_response|tool_result|function_call|data|\|))", re.IGNORECASE
)


def wrapped(text: str, nonce: str, tool: str) -> str:
    """A result between marks. `nonce` is random for each run, so that no text can know how its marks look."""
    inner = _CONTROL.sub("‹", text).replace(nonce, "")
    return f"<data {nonce} from={tool}>\n{inner}\n</data {nonce}>"


def cut(text: str, most: int) -> str:
    """At most so many characters of a result, saying so."""
    if most < 100:
        raise UserError(f"a tool's result of at most {most} characters tells nothing: allow at least 100")
    return text if len(text) <= most else f"{text[: most - 60]}\n[… cut: {len(text)} characters in all]"
