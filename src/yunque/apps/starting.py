"""The files that a new app begins with."""

from importlib.resources import files

from yunque.errors import UserError

KINDS = ("documents", "prompt", "agent", "chain")
_NAME = "my-app"


def starting_file(name: str, kind: str) -> str:
    """The text of a YAML file for an app of this kind; raises UserError for a kind that there is not."""
    if kind not in KINDS:
        raise UserError(f"{kind!r} is no kind of app: use {', '.join(KINDS)}")
    text = files("yunque.apps").joinpath("templates", f"{kind}.yaml").read_text(encoding="utf-8")
    return text.replace(_NAME, name)
