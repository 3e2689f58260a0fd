"""Adapters on disk, in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`, both ways.

Shapes: P virtual tokens, D hidden_size.
"""

import json
from pathlib import Path
from typing import Any, Literal, TypeVar

from safetensors.torch import save
from torch import Tensor

from yunque.configuration import validated
from yunque.errors import UserError
from yunque.model.configuration import Size
from yunque.model.formats.files import Files, checkpoint_file, has_file, place, read_json
from yunque.model.formats.pickled import PickledFile
from yunque.model.formats.safetensors import SafetensorsFile
from yunque.model.language_model import CausalModel, EncoderDecoder, LanguageModel
from yunque.model.lora import DEFAULT, attach_lora, lora_adapters, lora_names
from yunque.model.lora_files import LoraConfig, PeftConfig, check_floats, lora_files, read_lora
from yunque.model.prompt_tuning import (
    PromptedCausalModel,
    PromptedEncoderDecoder,
    attach_prompt,
    embedding_size,
    prompt_vectors,
)
from yunque.model.sources import TensorSource

CONFIGURATION = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"
_PROMPT = "prompt_embeddings"
# Fields that change no number of an adapter once it is there. Any other that is unknown, and not empty, is refused.
_HARMLESS = {
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "loftq_config",
    "megatron_core",
    "num_attention_heads",
    "num_layers",
    "peft_version",
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "qalora_group_size",
    "revision",
    "task_type",
    "token_dim",
    "tokenizer_kwargs",
    "tokenizer_name_or_path",
}

_Config = TypeVar("_Config", bound=PeftConfig)


class PromptConfig(PeftConfig):
    """The fields of a prompt that change its numbers."""

    peft_type: Literal["PROMPT_TUNING"]
    num_virtual_tokens: Size
    # 2 is a prompt for the target as well.
    num_transformer_submodules: Literal[1] | None = None


def save_adapter(model: LanguageModel, name: str = DEFAULT, base: str | None = None) -> dict[str, bytes]:
    """The files of an adapter: of the LoRA called `name`, or of a model's prompt.

    `base` is what PEFT takes the model itself from. Raises UserError where there is no such adapter.
    """
    if isinstance(model, PromptedCausalModel | PromptedEncoderDecoder):
        tensors, fields = _prompt_files(prompt_vectors(model).detach().cpu())
    elif name in lora_names(model):
        tensors, fields = lora_files(model, lora_adapters(model, name))
    else:
        raise UserError(f"the model has no adapter {name!r} to save")
    common = {"base_model_name_or_path": base, "inference_mode": True, "task_type": _task(model)}
    content = json.dumps(dict(sorted((common | fields).items())), indent=2, ensure_ascii=False) + "\n"
    return {CONFIGURATION: content.encode(), WEIGHTS: save(tensors, metadata={"format": "pt"})}


def load_adapter(
    model: LanguageModel, files: Files, name: str = DEFAULT, trainable: bool = False
) -> LanguageModel:
    """The model with the adapter in a folder (or in files given by name) on it, selected, and the base frozen.

    A LoRA is put on `model` in place, under `name`; a prompt comes as another model around it. Raises UserError for
    files that are absent or damaged, that are not for this model, or that hold another kind of adapter.
    """
    fields, where = _read_fields(files)
    if fields.get("peft_type") == "PROMPT_TUNING":
        prompt = _checked(PromptConfig, fields, where)
        return attach_prompt(model, _read_prompt(model, prompt, _open(files)), trainable)
    _load_lora(model, files, fields, where, name, trainable)
    return model


def load_lora(model: LanguageModel, files: Files, name: str) -> None:
    """As `load_adapter`, for a LoRA to use. Raises UserError for a prompt too: a model has only one."""
    fields, where = _read_fields(files)
    if fields.get("peft_type") == "PROMPT_TUNING":
        raise UserError(
            f"{where}: is a prompt, which is opened as a model of its own: only a LoRA is put beside others"
        )
    _load_lora(model, files, fields, where, name, trainable=False)


def _read_fields(files: Files) -> tuple[dict[str, Any], str]:
    """The fields of an adapter's configuration, and where they are."""
    if isinstance(files, Path) and not files.is_dir():
        raise UserError(f"{files}: no such folder")
    path = checkpoint_file(files, CONFIGURATION)
    return read_json(path), str(path)


def _load_lora(
    model: LanguageModel, files: Files, fields: dict[str, Any], where: str, name: str, trainable: bool
) -> None:
    kind = fields.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{where}: peft_type {str(kind)[:40]!r} is not read (LORA and PROMPT_TUNING are)")
    lora = _checked(LoraConfig, fields, where)
    attach_lora(model, name, read_lora(model, lora, _open(files), where, trainable), trainable)


def _checked(cls: type[_Config], fields: dict[str, Any], where: str) -> _Config:
    """The configuration; raises UserError for fields that are wrong, and for what it asks for beyond them."""
    config = validated(cls, fields, where)
    for field, value in (config.model_extra or {}).items():
        if value and field not in _HARMLESS:
            raise UserError(f"{where}: {field[:80]} asks for something that this version does not do")
    return config


def _open(files: Files) -> TensorSource:
    if has_file(files, WEIGHTS):
        return SafetensorsFile(checkpoint_file(files, WEIGHTS), WEIGHTS)
    if has_file(files, _PICKLED):
        return PickledFile(checkpoint_file(files, _PICKLED), _PICKLED)
    raise UserError(f"{place(files)}: no adapter here: {WEIGHTS} is missing")


def _task(model: LanguageModel) -> str:
    if isinstance(model, EncoderDecoder):
        return "SEQ_2_SEQ_LM"
    return "CAUSAL_LM" if isinstance(model, CausalModel) else "FEATURE_EXTRACTION"


def _prompt_files(vectors_PD: Tensor) -> tuple[dict[str, Tensor], dict[str, Any]]:
    count, size = vectors_PD.shape
    fields = {
        "peft_type": "PROMPT_TUNING",
        "num_virtual_tokens": count,
        "token_dim": size,
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
    }
    return {_PROMPT: vectors_PD.contiguous()}, fields


def _read_prompt(model: LanguageModel, config: PromptConfig, source: TensorSource) -> Tensor:
    if set(source.entries) != {_PROMPT}:
        raise UserError(f"{source.where}: a prompt is one tensor, called {_PROMPT}")
    entry = source.entries[_PROMPT]
    wanted = (config.num_virtual_tokens, embedding_size(model))
    if entry.shape != wanted:
        raise UserError(
            f"{source.where}: the prompt is {list(entry.shape)}, and for this model and its {CONFIGURATION} it is "
            f"{list(wanted)}"
        )
    check_floats(entry, _PROMPT, source.where)
    return source.read(_PROMPT).float()
