"""YAML front matter between two lines `---`, then a body; every field knows its line."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from yunque.errors import UserError

MOST_CHARACTERS = 2_000_000


@dataclass(frozen=True)
class FrontMatter:
    """What stands in a file: `values` above, `body` below, which begins at line `body_line`."""

    values: dict[str, Any]
    body: str
    body_line: int
    root: yaml.Node | None

    def line(self, path: Sequence[object]) -> int:
        """The line of a field, or of the nearest one around it that is written down."""
        node, line = self.root, 2
        for part in path:
            found = _child(node, part)
            if found is None:
                break
            line, node = found
        return line


def read_front_matter(text: str, where: str) -> FrontMatter:
    """Take a file apart; raises UserError that names `where` and the line."""
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"{where}: has {len(text):,} characters, more than {MOST_CHARACTERS:,}")
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    if lines[0].rstrip() != "---":
        raise UserError(f"{where}:1: must begin with a line --- and its fields (name: ...), then another ---")
    end = next((number for number, line in enumerate(lines[1:], 1) if line.rstrip() == "---"), None)
    if end is None:
        raise UserError(f"{where}:1: the fields that begin here have no line --- after them")
    head = "\n".join(lines[1:end])
    try:
        root = yaml.compose(head, Loader=yaml.SafeLoader)
        _check_keys(root, where)
        values = yaml.safe_load(head)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise UserError(f"{where}:{mark.line + 2 if mark else 2}: not valid YAML ({problem})") from None
    except (RecursionError, ValueError, TypeError) as error:
        raise UserError(f"{where}:2: not valid YAML ({type(error).__name__})") from None
    if not isinstance(values, dict):
        raise UserError(f"{where}:2: must hold fields, such as name: summarize")
    return FrontMatter(values, "\n".join(lines[end + 1 :]), end + 2, root)


def _check_keys(root: yaml.Node | None, where: str) -> None:
    """Refuse two fields of one name (YAML would take the last), and aliases (they can unfold without end)."""
    waiting, seen = ([root] if root else []), set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            raise UserError(f"{where}:{node.start_mark.line + 2}: YAML's * and & are not used here")
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            keys = set[str]()
            for key, value in node.value:
                if str(key.value) in keys:
                    raise UserError(
                        f"{where}:{key.start_mark.line + 2}: {key.value} is here for the second time"
                    )
                keys.add(str(key.value))
                waiting.append(value)


def _child(node: yaml.Node | None, part: object) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if str(key.value) == str(part):
                return key.start_mark.line + 2, value
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark.line + 2, node.value[part]
    return None
