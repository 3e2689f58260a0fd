"""Training an adapter in place of all weights: it is put on before, and kept and merged after."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from yunque.model import LanguageModel
from yunque.model.adapter_files import save_adapter
from yunque.model.lora import LoraSettings, add_lora, merge_lora, remove_lora
from yunque.workspace import Artifact, Workspace


def make_trainable(model: LanguageModel, lora: LoraSettings | None, seed: int) -> None:
    """Free the weights of a model, or put a fresh adapter on it, drawn from `seed`."""
    if lora is None:
        model.requires_grad_(True)
    else:
        add_lora(model, lora, torch.Generator().manual_seed(seed))


def keep_adapter(
    workspace: Workspace,
    name: str,
    model: LanguageModel,
    parents: Sequence[Artifact],
    config: Mapping[str, Any],
) -> Artifact:
    """Keep the adapter of a model as an artifact, in PEFT's format, and merge it: `model` is a plain one again."""
    adapter = workspace.put("adapter", name, save_adapter(model), parents, config)
    merge_lora(model)
    remove_lora(model)
    return adapter
