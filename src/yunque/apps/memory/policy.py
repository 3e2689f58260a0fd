"""What is kept of conversations: nothing, as long as the process runs, or for some days."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from yunque.configuration import Settings, validated
from yunque.errors import UserError


class MemoryPolicy(Settings):
    """`keep: none` keeps nothing, `session` keeps it in this process's memory and never on disk, `days` keeps it
    sealed on disk until `days` days after its last message. `originals: drop` deletes messages that a summary stands
    for."""

    keep: Literal["none", "session", "days"] = "none"
    days: int | None = Field(default=None, ge=1, le=36_500)
    originals: Literal["keep", "drop"] = "keep"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.keep == "days") != (self.days is not None):
            raise ValueError("`days` says for how many days, and goes with keep: days only")
        return self


def read_policy(value: Any, where: str) -> MemoryPolicy:
    """A policy as a file gives it: `none`, `session`, `{days: 30}`, or all of its fields.

    Raises UserError that names `where`.
    """
    if value is None or value in ("none", "session"):
        return MemoryPolicy(keep=value or "none")
    if isinstance(value, dict):
        return validated(MemoryPolicy, {"keep": "days", **value} if "days" in value else value, where)
    raise UserError(
        f"{where}: {value!r} is no way to keep conversations: write none, session or {{days: 30}}"
    )
