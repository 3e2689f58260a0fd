"""Names for the answers to several files in one folder."""

from collections.abc import Sequence
from pathlib import Path


def unique_names(files: Sequence[Path]) -> dict[Path, str]:
    """A name for each file's answer: its own, and with those of its folders where others have the same one."""
    whole = {file: file.resolve() for file in files}
    names: dict[Path, str] = {}
    for file, path in whole.items():
        alike = {other for other in whole.values() if other.name == path.name}
        depth = 1
        while len({other.parts[-depth:] for other in alike}) < len(alike):
            depth += 1
        names[file] = "-".join(part for part in path.parts[-depth:] if part != path.anchor)
    taken: dict[str, Path] = {}
    for file, name in names.items():
        # Folders may have the sign that joins them in their names.
        number = 2
        while taken.setdefault(names[file], whole[file]) != whole[file]:
            names[file], number = f"{name}-{number}", number + 1
    return names
