"""A model that writes, by its name: a model of the workspace, or an adapter, which is put on its base."""

import torch

from yunque.errors import UserError
from yunque.model import CausalModel, EncoderDecoder, load_model
from yunque.model.adapter_files import load_adapter
from yunque.tokenizer import Tokenizer, tokenizer_of
from yunque.workspace import Artifact, Workspace
from yunque.workspace.artifact import parse_ref


def find_writer(workspace: Workspace, ref: str) -> Artifact:
    """The model, or where there is none of this name the adapter, called `[kind/]NAME[@VERSION]`.

    Raises UserError where there is neither.
    """
    kind = parse_ref(ref).kind
    if kind == "adapter" or (kind is None and not workspace.find(ref, "model")):
        found = workspace.find(ref, "adapter")
        if found or kind == "adapter":
            return found or workspace.get(ref, "adapter")
    return workspace.get(ref, "model")


def base_of(workspace: Workspace, artifact: Artifact) -> Artifact:
    """The model itself, or the one that an adapter was trained on."""
    if artifact.kind != "adapter":
        return artifact
    parent = next((ref for ref in artifact.parents if ref.startswith("model/")), None)
    if parent is None:
        raise UserError(
            f"{artifact.ref} does not say which model it is for: it has no model among its parents"
        )
    return workspace.get(parent, "model")


def open_writer(workspace: Workspace, artifact: Artifact) -> tuple[CausalModel | EncoderDecoder, Tokenizer]:
    """A model, or an adapter on its base, with its tokenizer. Raises UserError for one that writes no text, and for
    damaged files."""
    base = base_of(workspace, artifact)
    model = load_model(workspace.files(base), torch.float32)
    if artifact.kind == "adapter":
        model = load_adapter(model, workspace.files(artifact))
    if not isinstance(model, CausalModel | EncoderDecoder):
        raise UserError(f"{base.ref} is a {model.config.model_type} model, which reads and writes no text")
    return model, tokenizer_of(workspace, base)
