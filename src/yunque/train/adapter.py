"""Training an adapter in place of all weights: it is put on before, and kept (a LoRA also merged) after."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from pydantic import model_validator

from yunque.errors import UserError
from yunque.model import CausalModel, EncoderDecoder, LanguageModel, load_model
from yunque.model.adapter_files import save_adapter
from yunque.model.lora import LoraSettings, add_lora, merge_lora, remove_lora
from yunque.model.prompt_tuning import PromptedModel, PromptSettings, add_prompt
from yunque.model.scored import is_reward_model
from yunque.tokenizer import Tokenizer
from yunque.train.distributed import first_makes
from yunque.train.objectives.written import Writer
from yunque.workspace import Artifact, Workspace


class PromptTuningSettings(PromptSettings):
    """A prompt to train; with a `text` it begins as that."""

    text: str | None = None

    @model_validator(mode="after")
    def _check_text(self) -> Self:
        if (self.text is None) == (self.initialization == "text"):
            raise ValueError("initialization=text and the text itself belong together: give both or none")
        return self


def open_base(workspace: Workspace, base: Artifact, adapted: bool) -> Writer:
    """A model to start from, frozen; `adapted` says that an adapter will be trained on it, not the model itself.

    Raises UserError for a model that does not write, and for a quantized one that is to be trained itself.
    """
    files = workspace.files(base)
    if is_reward_model(files):
        raise UserError(f"{base.ref} is a reward model, which writes nothing: start from another model")
    model = load_model(files, torch.float32)
    if not isinstance(model, CausalModel | EncoderDecoder):
        raise UserError(f"{base.ref} writes nothing: start from a model that does")
    if model.config.quantization_config and not adapted:
        raise UserError(
            f"{base.ref} is quantized: train an adapter on it (--lora), or the model that it was made of"
        )
    return model


def make_trainable(model: LanguageModel, lora: LoraSettings | None, seed: int) -> None:
    """Free the weights of a model, or put a fresh adapter on it, drawn from `seed`."""
    if lora is None:
        model.requires_grad_(True)
    else:
        add_lora(model, lora, torch.Generator().manual_seed(seed))


def prompted(model: Writer, prompt: PromptTuningSettings, tokenizer: Tokenizer, seed: int) -> PromptedModel:
    """The model with a fresh prompt, drawn from `seed` or begun as the text of the settings."""
    text = [] if prompt.text is None else tokenizer.encode(prompt.text)
    return add_prompt(model, prompt, text, torch.Generator().manual_seed(seed))


def keep_adapter(
    workspace: Workspace,
    name: str,
    model: LanguageModel,
    parents: Sequence[Artifact],
    config: Mapping[str, Any],
) -> Artifact:
    """Keep the LoRA of a model as an artifact, in PEFT's format, and merge it: `model` is a plain one again."""
    adapter = first_makes(
        lambda: workspace.put("adapter", name, save_adapter(model), parents, config), Artifact
    )
    merge_lora(model)
    remove_lora(model)
    return adapter
