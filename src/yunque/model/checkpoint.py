"""Models on disk: a Hugging Face folder (`config.json` and weights), read with care, written back bit for bit."""

import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar, overload

import torch
from pydantic import ValidationError
from safetensors.torch import save
from torch import Tensor

from yunque.errors import UserError
from yunque.machine import machine_memory
from yunque.model.configuration import ModelConfig
from yunque.model.family import Family, family_of
from yunque.model.formats.files import Files, checkpoint_file, read_json
from yunque.model.language_model import LanguageModel
from yunque.model.quantize import check_quantized, replace_by_quantized
from yunque.model.sources import TensorSource, open_source
from yunque.model.weight_map import PLAIN, Link, links

Kind = TypeVar("Kind", bound=LanguageModel)

# How many names a sentence about tensors tells.
_NAMES_TOLD = 3


def parse_configuration(fields: Mapping[str, Any], where: str) -> ModelConfig:
    """The configuration in the fields of a `config.json`; raises UserError that names `where` and the wrong field."""
    try:
        return family_of(fields).config.model_validate(dict(fields))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the shape"
        raise UserError(f"{where}: not a model that this version opens ({field}: {first['msg']})") from None


def read_configuration(files: Files) -> ModelConfig:
    """The configuration of the model in a folder, or in files given by name; raises UserError."""
    path = checkpoint_file(files, "config.json")
    fields = read_json(path)
    quantized = fields.get("quantization_config")
    if isinstance(quantized, dict) and not str(quantized.get("quant_method")).startswith("yunque"):
        raise UserError(
            f"{path}: the weights were quantized by {str(quantized.get('quant_method'))[:40]!r}, which cannot be "
            "opened: use the checkpoint in float numbers"
        )
    config = parse_configuration(fields, str(path))
    beside = family_of(config).beside
    return config if beside is None else parse_configuration({**fields, **beside(files)}, str(path))


@overload
def load_model(files: Files, dtype: torch.dtype | None = None) -> LanguageModel: ...
@overload
def load_model(files: Files, dtype: torch.dtype | None, kind: type[Kind]) -> Kind: ...
def load_model(
    files: Files, dtype: torch.dtype | None = None, kind: type[LanguageModel] = LanguageModel
) -> LanguageModel:
    """The model in a folder, or in files given by name; ready for use, not for training.

    Numbers become `dtype`, or stay as they are stored (as those of a quantized model always do). `kind` is what the
    caller can use (a `CausalModel`, say).
    Raises UserError when a file is absent, damaged, or does not fit the configuration, before memory is taken.
    """
    return build_model(read_configuration(files), open_source(files), dtype, kind)


def build_model(
    config: ModelConfig,
    source: TensorSource,
    dtype: torch.dtype | None = None,
    kind: type[LanguageModel] = LanguageModel,
) -> LanguageModel:
    """A model of this configuration with the tensors of `source`; see `load_model`."""
    model, found = plan_loading(config, source)
    if not isinstance(model, kind):
        raise UserError(
            f"{source.where}: a {config.model_type} model cannot do this: it is no {kind.__name__}"
        )
    _check_memory(source, found, dtype)
    if dtype is None:
        _check_numbers(source, found)
    state = model.state_dict()
    for link, name in found.items():
        tensor = source.read(name)
        if dtype is not None and not config.quantization_config and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        parts = link.layout.split(tensor, [state[ours].shape for ours in link.ours])
        for ours, part in zip(link.ours, parts, strict=True):
            # A part of a larger tensor would keep all of it in memory, and lies badly for products.
            state[ours] = part.contiguous()
    model.load_state_dict(state, assign=True)
    if config.quantization_config:
        check_quantized(model, source.where)
    return model.eval().requires_grad_(False)


def plan_loading(config: ModelConfig, source: TensorSource) -> tuple[LanguageModel, dict[Link, str]]:
    """The empty model (on the meta device), and for each of its links the tensor of `source` that it is.

    Raises UserError where `source` lacks a tensor, has one of another shape or one too many, or where a copy of a
    tied embedding is not one: such copies are compared, of the other tensors only names and shapes are looked at.
    """
    family = family_of(config)
    if config.num_layers > len(source.entries):
        raise UserError(
            f"{source.where}: config.json speaks of {config.num_layers:,} layers, and the weights have only "
            f"{len(source.entries):,} tensors"
        )
    model = _empty_model(family, _with_true_ties(family, config, source), source)
    found = _find_tensors(family, model, source)
    state = model.state_dict()
    for link, name in found.items():
        entry = source.entries[name]
        wanted = link.layout.join([state[ours] for ours in link.ours])
        if entry.shape != tuple(wanted.shape):
            raise UserError(
                f"{source.where}: the tensor {name} is {list(entry.shape)}, and by config.json it is "
                f"{list(wanted.shape)}"
            )
        whole = not wanted.is_floating_point()
        if whole == entry.dtype.is_floating_point or (whole and entry.dtype != wanted.dtype):
            raise UserError(
                f"{source.where}: the tensor {name} holds {str(entry.dtype).removeprefix('torch.')} numbers"
            )
    return model, found


def _with_true_ties(family: Family, config: ModelConfig, source: TensorSource) -> ModelConfig:
    """The configuration, with the ties that the tensors have where it is they that decide (`Family.own_head`)."""
    if family.own_head is None or config.quantization_config:
        return config
    head = _stored_name(family, family.own_head, source)
    tables = {*family.copies, *family.copies.values()} - {family.own_head}
    stored = {_stored_name(family, name, source) for name in tables} - {None}
    tied = head is None or all(_same(source, head, table) for table in stored if table)
    return config.model_copy(update={"tie_word_embeddings": tied})


def _empty_model(family: Family, config: ModelConfig, source: TensorSource) -> LanguageModel:
    try:
        with torch.device("meta"):
            model = family.model(config)
            if config.quantization_config:
                replace_by_quantized(model, config.quantization_config)
    except RuntimeError:
        raise UserError(
            f"{source.where}: the sizes in config.json are beyond what a tensor can have"
        ) from None
    for module in family.optional:
        names = [link.theirs for link in model_links(family, model) if link.ours[0].startswith(f"{module}.")]
        if not any(_stored_name(family, name, source) for name in names):
            setattr(model, module, None)
    return model


def model_links(family: Family, model: LanguageModel) -> list[Link]:
    """The tensors of a model, and their names and layouts in a checkpoint.

    A quantized model is kept under our own names: no other program opens it.
    """
    tensors = model.state_dict()
    if model.config.quantization_config:
        return [Link((name,), name, PLAIN) for name in tensors]
    return links(family.weight_map, tensors, model.config)


def _stored_name(family: Family, name: str, source: TensorSource) -> str | None:
    """What `source` calls the tensor `name`: with the family's prefix or without, in a new spelling or an old one."""
    old = [name.removesuffix(new) + old for new, old in family.old_endings.items() if name.endswith(new)]
    for spelled in (name, *old):
        for candidate in (spelled, spelled.removeprefix(family.prefix), family.prefix + spelled):
            if candidate in source.entries:
                return candidate
    return None


def _find_tensors(family: Family, model: LanguageModel, source: TensorSource) -> dict[Link, str]:
    found: dict[Link, str] = {}
    wanted = {link.theirs: link for link in model_links(family, model)}
    for theirs, link in wanted.items():
        name = _stored_name(family, theirs, source)
        if name is not None:
            found[link] = name
    spare = set(source.entries) - set(found.values())
    for copy, original in family.copies.items():
        stored = _stored_name(family, copy, source)
        # Some writers keep a tied embedding under the copy's name only.
        if original in wanted and wanted[original] not in found and stored in spare and stored:
            spare.remove(stored)
            found[wanted[original]] = stored
    missing = [theirs for theirs, link in wanted.items() if link not in found]
    if missing:
        raise UserError(f"{source.where}: {_not_of(family, model.config)}: {_told(missing)} missing")
    for copy, original in family.copies.items():
        stored = _stored_name(family, copy, source)
        if stored in spare and stored and original in wanted:
            spare.remove(stored)
            if not _same(source, stored, found[wanted[original]]):
                raise UserError(
                    f"{source.where}: config.json ties {copy} to {original}, and the two differ: one of the files "
                    "is wrong (tie_word_embeddings?)"
                )
    ignored = re.compile("|".join(f"(?:{pattern})" for pattern in family.ignored) or r"(?!)")
    spare = {name for name in spare if not ignored.fullmatch(name)}
    if spare:
        raise UserError(
            f"{source.where}: {_not_of(family, model.config)}: {_told(sorted(spare))} not part of it"
        )
    return found


def _not_of(family: Family, config: ModelConfig) -> str:
    """How a refusal begins; it names what the checkpoint is by its own words, where that is another task's model."""
    refusal = f"not the weights of a {config.model_type}"
    if not config.architectures or family.architecture in config.architectures:
        return refusal
    said = ", ".join(config.architectures)[:80]
    return (
        f"{refusal} as {family.architecture} has them (config.json says {said!r}, a model for another task)"
    )


def _told(names: list[str]) -> str:
    shown = ", ".join(name[:100] for name in names[:_NAMES_TOLD])
    more = len(names) - _NAMES_TOLD
    verb = "is" if len(names) == 1 else "are"
    return f"{shown}{f' and {more:,} more' if more > 0 else ''} {verb}"


def _same(source: TensorSource, first: str, second: str) -> bool:
    one, other = source.entries[first], source.entries[second]
    return (one.shape, one.dtype) == (other.shape, other.dtype) and torch.equal(
        source.read(first), source.read(second)
    )


def _check_numbers(source: TensorSource, found: Mapping[Link, str]) -> None:
    """Raise UserError for 8-bit floats: they can be kept, and nothing can be computed with them."""
    for name in found.values():
        stored = source.entries[name].dtype
        if stored.is_floating_point and stored.itemsize == 1:
            raise UserError(
                f"{source.where}: the tensor {name} holds {str(stored).removeprefix('torch.')} numbers, which "
                "nothing can be computed with as they are: open it as float32, float16 or bfloat16"
            )


def _check_memory(source: TensorSource, found: Mapping[Link, str], dtype: torch.dtype | None) -> None:
    entries = [source.entries[name] for name in found.values()]
    check_memory(source.where, sum(entry.count * (dtype or entry.dtype).itemsize for entry in entries))


def check_memory(where: str, wanted: int) -> None:
    """Raise UserError where a model of so many bytes would not fit, before any of it is read."""
    total = machine_memory()
    if total is not None and wanted > total:
        raise UserError(
            f"{where}: the model takes {wanted / 1e9:.1f} GB of memory, and this machine "
            f"has {total / 1e9:.1f} GB"
        )


def checkpoint_tensors(model: LanguageModel) -> dict[str, Tensor]:
    """The tensors of a model under the names, and in the layout, of a checkpoint of its family."""
    state = model.state_dict()
    return {
        link.theirs: link.layout.join([state[name].detach() for name in link.ours]).contiguous()
        for link in model_links(family_of(model.config), model)
    }


def configuration_file(config: ModelConfig) -> bytes:
    """`config.json`: what was read, with nothing left out, or what a new model needs."""
    described = type(config).model_fields
    known = {field.alias or name for name, field in described.items()}
    said = {described[name].alias or name for name in config.model_fields_set & described.keys()}
    fields: dict[str, Any] = {
        name: value
        for name, value in config.model_dump(mode="json", by_alias=True).items()
        if value is not None or name not in known or name in said
    }
    # First, as other programs write it: they look there for what opens the model.
    architectures = fields.pop("architectures", None) or [family_of(config).architecture]
    return fields_file({"architectures": architectures, **fields})


def fields_file(fields: Mapping[str, Any]) -> bytes:
    """`config.json` with these fields."""
    return (json.dumps(fields, indent=2, ensure_ascii=False) + "\n").encode()


def save_model(model: LanguageModel) -> dict[str, bytes]:
    """`config.json` and `model.safetensors` of a model, under Hugging Face names.

    The weights are in memory once more than the model itself; `yunque.model.library` writes large ones in shards.
    """
    tensors = dict(sorted(checkpoint_tensors(model).items()))
    return {
        "config.json": configuration_file(model.config),
        "model.safetensors": save(tensors, metadata={"format": "pt"}),
    }
