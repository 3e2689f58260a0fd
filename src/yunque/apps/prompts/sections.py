"""The texts of a prompt: sections that begin with a line `[system]`, `[user]`, `[assistant]` or `[user es]`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from yunque.apps.prompts.definition import GIVEN
from yunque.apps.prompts.rendering import TemplateFault, examine
from yunque.errors import UserError

SectionRole = Literal["system", "user", "assistant"]
_ROLES = ("system", "user", "assistant")
_BORDER = re.compile(r"\[(system|user|assistant)(?:[ \t]+([a-z]{2}))?\][ \t]*")
# A border that somebody meant to write: it would be text, and the model would be asked something else.
_NEARLY = re.compile(
    r"\[\s*(?:system|user|assistant|human|bot|ai|sistema|usuario|asistente)\b[^\]\n]{0,20}\]\s*:?\s*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Section:
    """A template, who says it, in which language (None: in any), and the line where it begins."""

    role: SectionRole
    language: str | None
    template: str
    line: int


def read_sections(body: str, first_line: int, where: str) -> tuple[Section, ...]:
    """The sections of a body; one without borders is what the user says. Raises UserError with the line."""
    sections: list[Section] = []
    role, language, begun = "user", None, first_line
    lines: list[str] = []
    bordered = False

    def close() -> None:
        before = next((number for number, line in enumerate(lines) if line.strip()), None)
        if before is None:
            if bordered:
                raise UserError(f"{where}:{begun}: [{role}] is empty")
            return
        text = "\n".join(lines[before:]).rstrip()
        sections.append(Section(cast("SectionRole", role), language, text, begun + bordered + before))

    for number, line in enumerate(body.split("\n"), first_line):
        if border := _BORDER.fullmatch(line):
            if not bordered and any(one.strip() for one in lines):
                at = begun + next(place for place, one in enumerate(lines) if one.strip())
                raise UserError(f"{where}:{at}: this text has no role: put a line such as [system] above it")
            close()
            role, language, begun, bordered = border[1], border[2], number, True
            lines = []
        elif _NEARLY.fullmatch(line):
            raise UserError(
                f"{where}:{number}: {line.strip()} is not a role: write [system], [user], [assistant] or, "
                "for one language, [user es]"
            )
        else:
            lines.append(line)
    close()
    if not sections:
        raise UserError(f"{where}:{first_line}: the prompt has no text")
    return tuple(sections)


def check_sections(
    sections: Sequence[Section], inputs: Sequence[str], languages: Sequence[str], where: str
) -> None:
    """Every template can be read, knows only what there is, and every language has a user's text."""
    known = {*inputs, *GIVEN}
    for section in sections:
        if section.language and section.language not in languages:
            raise UserError(
                f"{where}:{section.line}: {section.language} is not among the languages ({', '.join(languages)})"
            )
    try:
        found = examine([section.template for section in sections])
    except TemplateFault as fault:
        line = sections[fault.number].line + (fault.line or 1) - 1
        raise UserError(f"{where}:{line}: the template {fault}") from None
    for section, names in zip(sections, found, strict=True):
        for name, line in names.items():
            if name not in known:
                raise UserError(
                    f"{where}:{section.line + line - 1}: there is no input {name!r} "
                    f"(it may use {', '.join([*inputs, *GIVEN])})"
                )
    for language in languages:
        roles = [section.role for section in spoken(sections, language)]
        if "user" not in roles:
            raise UserError(f"{where}: has no [user] text for {language}")
        if "system" in roles[1:]:
            line = [one for one in spoken(sections, language) if one.role == "system"][-1].line
            raise UserError(f"{where}:{line}: [system] comes once and first")


def spoken(sections: Sequence[Section], language: str) -> list[Section]:
    """The sections of a language, those for any among them."""
    return [section for section in sections if section.language in (None, language)]


def used_names(sections: Sequence[Section]) -> set[str]:
    """The names that the templates use."""
    return {name for names in examine([section.template for section in sections]) for name in names}
