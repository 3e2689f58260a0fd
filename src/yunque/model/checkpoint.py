"""Models on disk: a Hugging Face folder (`config.json`, `model.safetensors`), never pickle."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from yunque.errors import UserError
from yunque.model.configuration import LlamaConfig
from yunque.model.llama import WEIGHT_MAP, Llama
from yunque.model.quantize import replace_by_quantized

Files = Path | Mapping[str, Path]


def checkpoint_names(num_layers: int) -> dict[str, str]:
    """Our name of each module with weights, and its name in a checkpoint."""
    names: dict[str, str] = {}
    for ours, theirs in WEIGHT_MAP:
        layers = range(num_layers) if "{layer}" in ours else (0,)
        names.update({ours.format(layer=layer): theirs.format(layer=layer) for layer in layers})
    return names


def _renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """`tensors` with the module part of each name (all before the last dot) replaced."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        renamed[f"{names[module]}.{leaf}"] = tensor
    return renamed


def _file(files: Files, name: str) -> Path:
    if isinstance(files, Path):
        return files / name
    if name not in files:
        raise UserError(f"the model has no file {name}")
    return files[name]


def read_configuration(files: Files) -> LlamaConfig:
    """The shape in a model's `config.json`; raises UserError that names what is wrong in it."""
    path = _file(files, "config.json")
    try:
        return LlamaConfig.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: not a model that this version opens ({field}: {first['msg']})") from None
    except ValueError:
        raise UserError(f"{path}: is not valid JSON") from None


def load_model(files: Files) -> Llama:
    """The model in a folder, or in files given by name; ready for use, not for training.

    Raises UserError when a file is absent, damaged, or does not fit the configuration.
    """
    config, path = read_configuration(files), _file(files, "model.safetensors")
    with torch.device("meta"):
        model = Llama(config)
        if config.quantization_config:
            replace_by_quantized(model)
    names = {theirs: ours for ours, theirs in checkpoint_names(config.num_hidden_layers).items()}
    try:
        with safe_open(path, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        model.load_state_dict(_renamed(tensors, names), assign=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    except SafetensorError as error:
        raise UserError(f"{path}: is damaged ({error})") from None
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: the weights are not those of its config.json ({reason})") from None
    return model.eval().requires_grad_(False)


def save_model(model: nn.Module, config: LlamaConfig) -> dict[str, bytes]:
    """`config.json` and `model.safetensors` of a model, under Hugging Face names."""
    tensors = _renamed(model.state_dict(), checkpoint_names(config.num_hidden_layers))
    plain: dict[str, Any] = config.model_dump(mode="json", exclude_none=True)
    return {
        "config.json": (json.dumps(plain, indent=2) + "\n").encode(),
        "model.safetensors": save(
            {name: tensor.detach().contiguous() for name, tensor in sorted(tensors.items())},
            metadata={"format": "pt"},
        ),
    }
