"""A model wherever it is: a Hugging Face folder, a GGUF file, a checkpoint of llama2.c; looked at, not yet loaded."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yunque.errors import UserError
from yunque.model.checkpoint import parse_configuration, read_configuration
from yunque.model.configuration import ModelConfig
from yunque.model.formats.files import checkpoint_file, file_below, ordinary_file, read_json
from yunque.model.formats.gguf import GgufFile
from yunque.model.formats.gguf_header import MAGIC
from yunque.model.formats.gguf_tokenizer import read_tokenizer_values
from yunque.model.formats.llama2c import Llama2cFile
from yunque.model.formats.pooling import module_folders
from yunque.model.sources import TensorSource, open_source, weight_files
from yunque.tokenizer import Tokenizer, read_tokenizer

# What makes a tokenizer, in the formats that `read_tokenizer` knows.
_TOKENIZERS = ("tokenizer.json", "vocab.json", "encoder.json")
_TOKENIZER_ENDINGS = (".model", ".tiktoken")
_KEPT_ENDINGS = (".json", ".txt", ".md", ".jinja", ".bpe", *_TOKENIZER_ENDINGS)
_KEPT_BEGINNINGS = ("LICENSE", "LICENCE", "NOTICE", "README")
# What is kept of the folders below: chat templates, and the settings of what follows the model (`modules.json`).
_TEMPLATES = "additional_chat_templates"
_KEPT_BELOW = re.compile(rf"{_TEMPLATES}/[^/]+\.jinja|[^/.][^/]*/[^/.][^/]*\.json")
_LARGEST_KEPT = 256 << 20
# What an exported folder says of where it came from: this folder is ours to replace.
EXPORT_MARK = "yunque.json"
# What we write beside a model and no other program reads.
_OURS = (EXPORT_MARK, "rows_seen.json")


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk. `fields` are those of its `config.json`, as it came or as the file's header says.

    `weights` are the files that hold the tensors, `kept` the others that belong to the model, both by name.
    """

    format: str
    fields: Mapping[str, Any]
    source: TensorSource
    weights: Mapping[str, Path]
    kept: Mapping[str, Path] = field(default_factory=dict)
    tokenizer: Tokenizer | None = None

    @property
    def is_hugging_face(self) -> bool:
        """Whether it came with a `config.json` of its own, which is then among `kept`."""
        return "config.json" in self.kept

    @property
    def configuration(self) -> ModelConfig:
        """The configuration, read; raises UserError where it is of no model that can be opened."""
        if self.is_hugging_face:
            return read_configuration(self.kept)
        return parse_configuration(self.fields, self.source.where)


def open_checkpoint(path: Path, tokenizer: Path | None = None) -> Checkpoint:
    """The model at `path`: a folder, a `.gguf` file, or a llama2.c `.bin`; `tokenizer` where it has none with it.

    Raises UserError where there is no model, or one that cannot be read. Tensors are not read.
    """
    try:
        found = _open_folder(path) if path.is_dir() else _open_file(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return found if tokenizer is None else _with_tokenizer(found, tokenizer)


def open_files(files: Mapping[str, Path]) -> Checkpoint:
    """The model that a workspace, or a folder, has in these files."""
    fields = read_json(checkpoint_file(files, "config.json"))
    weights = {name: files[name] for name in weight_files(files)}
    kept = {name: path for name, path in files.items() if _is_kept(name)}
    format = "safetensors" if any(name.endswith(".safetensors") for name in weights) else "pytorch"
    return Checkpoint(format, fields, open_source(files), weights, kept, _tokenizer_of(kept))


def _open_folder(folder: Path) -> Checkpoint:
    names = sorted(entry.name for entry in folder.iterdir())
    texts = [name for name in names if _is_kept(name) and not (folder / name).is_dir()]
    packed = [name for name in names if name.endswith(".gguf")]
    if "config.json" not in names and packed:
        if len(packed) > 1:
            raise UserError(f"{folder}: holds several GGUF files: name one of {', '.join(packed)}")
        return _open_gguf(checkpoint_file(folder, packed[0]))
    if "config.json" not in names:
        raise UserError(f"{folder}: no model here (a config.json and its weights, or a .gguf file)")
    wanted = {"config.json", *weight_files(folder), *texts}
    files = {name: checkpoint_file(folder, name) for name in sorted(wanted)}
    return open_files({**files, **_files_below(folder)})


def _files_below(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for below in (_TEMPLATES, *module_folders(folder)):
        names = [path.name for path in (folder / below).iterdir()] if (folder / below).is_dir() else []
        for name in sorted(names):
            if _KEPT_BELOW.fullmatch(f"{below}/{name}"):
                found[f"{below}/{name}"] = file_below(folder, below, name)
    return found


def _open_file(path: Path) -> Checkpoint:
    ordinary_file(path)
    with path.open("rb") as file:
        start = file.read(4)
    if start == MAGIC or path.suffix == ".gguf":
        return _open_gguf(path)
    if path.suffix in (".safetensors", ".json", ".pt", ".pth") or start[:2] in (b"PK", b"\x80\x02"):
        raise UserError(
            f"{path}: is one file of a model: name the folder that it is in, with its config.json"
        )
    opened = Llama2cFile(path)
    return Checkpoint("llama2.c", opened.config, opened, {path.name: path})


def _open_gguf(path: Path) -> Checkpoint:
    opened = GgufFile(path)
    return Checkpoint(
        "gguf", opened.config, opened, {path.name: path}, {}, read_tokenizer_values(opened.values, str(path))
    )


def _is_kept(name: str) -> bool:
    if "/" in name:
        return _KEPT_BELOW.fullmatch(name) is not None
    if name.startswith(".") or name.endswith(".index.json") or name in _OURS:
        return False
    return name.endswith(_KEPT_ENDINGS) or name.startswith(_KEPT_BEGINNINGS)


def _tokenizer_of(files: Mapping[str, Path]) -> Tokenizer | None:
    for path in files.values():
        if path.stat().st_size > _LARGEST_KEPT:
            raise UserError(f"{path}: is far too large to be part of a model beside its weights")
    if any(name in _TOKENIZERS or name.endswith(_TOKENIZER_ENDINGS) for name in files):
        return read_tokenizer(files)
    return None


def _with_tokenizer(found: Checkpoint, path: Path) -> Checkpoint:
    """The same model with the tokenizer of another file or folder."""
    tokenizer = read_tokenizer(path)
    rest = {name: file for name, file in found.kept.items() if name not in tokenizer.to_files()}
    return Checkpoint(found.format, found.fields, found.source, found.weights, rest, tokenizer)
