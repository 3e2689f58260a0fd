"""How sentence-transformers keeps, beside a model, what becomes of its vectors: `modules.json` and its folders."""

from pathlib import Path
from typing import Any

from yunque.errors import UserError
from yunque.model.formats.files import (
    Files,
    check_plain,
    checkpoint_file,
    file_below,
    has_file,
    parse_json,
    place,
    read_json,
)

_POOLING = ("1_Pooling", "config.json")
# The root of a text's length changes nothing in a vector that is made 1 long afterwards.
_KNOWN = {"mean": "mean", "mean_sqrt_len_tokens": "mean", "cls": "cls", "max": "max"}
_OLD_NAMES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_MODULES = ("Transformer", "Pooling", "Normalize")


def pooling_fields(files: Files) -> dict[str, Any]:
    """`{"pooling": ...}` where the files say it; raises UserError for a way that cannot be followed."""
    _check_modules(files)
    path = _pooling_file(files)
    if path is None:
        return {}
    fields = read_json(path)
    modes = fields.get("pooling_mode") or [name for old, name in _OLD_NAMES.items() if fields.get(old)]
    named = [modes] if isinstance(modes, str) else modes
    if not isinstance(named, list) or len(named) != 1 or str(named[0]) not in _KNOWN:
        raise UserError(f"{path}: pooling by {str(modes)[:80]} is not known (there are mean, cls and max)")
    return {"pooling": _KNOWN[str(named[0])]}


def _pooling_file(files: Files) -> Path | None:
    if not isinstance(files, Path):
        return files.get("/".join(_POOLING))
    below, name = _POOLING
    return file_below(files, below, name) if has_file(files / below, name) else None


def module_folders(files: Files) -> list[str]:
    """The folders that `modules.json` names, or none where there is no such file; raises UserError."""
    folders = [step.get("path") for step in _modules(files)]
    named = [folder for folder in folders if isinstance(folder, str) and folder]
    for folder in named:
        check_plain(files, folder)
    return named


def _check_modules(files: Files) -> None:
    for step in _modules(files):
        kind = str(step.get("type")).rpartition(".")[2]
        if kind not in _MODULES:
            raise UserError(
                f"{place(files)}: modules.json has a {kind[:80]} after the model, which is not known"
            )


def _modules(files: Files) -> list[dict[str, Any]]:
    if not has_file(files, "modules.json"):
        return []
    path = checkpoint_file(files, "modules.json")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    # The file is a list, and a JSON object is what the reader checks.
    steps = parse_json(b'{"steps": ' + content + b"}", str(path))["steps"]
    if not isinstance(steps, list):
        raise UserError(f"{path}: must hold a list of what follows the model")
    return [step for step in steps if isinstance(step, dict)]
