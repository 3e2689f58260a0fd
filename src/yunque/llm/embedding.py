"""Vectors for whole texts, from the models of the workspace.

Shapes: B texts, T positions, D hidden_size.
"""

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from yunque.errors import UserError
from yunque.llm.face import ContextOverflow, Embeddings, Prompt
from yunque.model import CausalModel, Encoder, EncoderDecoder, LanguageModel, load_model
from yunque.tokenizer import Tokenizer, tokenizer_of
from yunque.workspace import Workspace

_MOST_POSITIONS = 4096


class LocalEncoder:
    """An encoder of the workspace, run by this process: it reads texts and writes none."""

    local = True

    def __init__(self, name: str, model: Encoder, tokenizer: Tokenizer) -> None:
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.context = model.config.context
        # Two forwards at once would share the same cores and both be slower.
        self._turn = threading.Lock()

    @classmethod
    def open(cls, workspace: Workspace, ref: str) -> "LocalEncoder":
        """The model `[model/]NAME[@VERSION]`; raises UserError when there is none, or it is no encoder."""
        artifact = workspace.get(ref, "model")
        model = load_model(workspace.files(artifact), torch.float32, Encoder)
        return cls(artifact.ref, model, tokenizer_of(workspace, artifact))

    def embed(self, texts: Sequence[Prompt]) -> Embeddings:
        """The vector that the encoder itself gives each text. Raises ContextOverflow."""
        with self._turn:
            return embed_with(self.model, self.tokenizer, texts, self.name)


@torch.inference_mode()
def embed_with(model: LanguageModel, tokenizer: Tokenizer, texts: Sequence[Prompt], name: str) -> Embeddings:
    """A vector of length 1 for each text or list of tokens; `name` is the model's, for what is said to a user.

    An encoder says it itself. Of a decoder it is the mean of its last hidden vectors, of an encoder-decoder that of
    its source's. Raises ContextOverflow for a text that is too long, UserError for one without tokens.
    """
    ids = [tokenizer.encode_prompt(text) if isinstance(text, str) else list(text) for text in texts]
    context = model.config.context
    for number, read in enumerate(ids):
        if not read:
            raise UserError(f"input[{number}] is empty: there is nothing to embed")
        if context and len(read) > context:
            raise ContextOverflow(
                f"input[{number}] has {len(read)} tokens, and at most {context} fit in the context of {name}",
                context,
            )
        if max(read) >= model.config.vocab_size:
            raise UserError(
                f"input[{number}]: token {max(read)} does not exist: {name} has {model.config.vocab_size}"
            )
    vectors: list[list[float]] = [[] for _ in ids]
    for rows in _batches(ids):
        for row, vector in zip(rows, _vectors(model, [ids[row] for row in rows]).tolist(), strict=True):
            vectors[row] = vector
    return Embeddings(vectors, sum(map(len, ids)))


def _batches(ids: Sequence[Sequence[int]]) -> list[list[int]]:
    """The texts in groups of one length: what a text's vector is does not depend on what is read with it."""
    alike: dict[int, list[int]] = {}
    for row, read in enumerate(ids):
        alike.setdefault(len(read), []).append(row)
    return [
        rows[first : first + most]
        for length, rows in alike.items()
        for most in [max(1, _MOST_POSITIONS // length)]
        for first in range(0, len(rows), most)
    ]


def _vectors(model: LanguageModel, ids: list[list[int]]) -> Tensor:
    """Vectors [B, D] of texts of one length."""
    ids_BT = torch.tensor(ids, device=next(model.parameters()).device)
    if isinstance(model, Encoder):
        return model.embed(ids_BT).float()
    if isinstance(model, EncoderDecoder):
        hidden_BTD = model.encode(ids_BT)
    else:
        assert isinstance(model, CausalModel)
        hidden_BTD = model.hidden(ids_BT)
    return torch.nn.functional.normalize(hidden_BTD.float().mean(1), dim=-1)
