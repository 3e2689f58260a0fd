"""Vectors for whole texts, from the models of the workspace.

Shapes: B texts, T positions, D hidden_size.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from yunque.errors import UserError
from yunque.generate.scheduler import Unwanted
from yunque.generate.turn import Turn
from yunque.llm.face import ContextOverflow, Embeddings, Prompt
from yunque.model import CausalModel, Encoder, EncoderDecoder, LanguageModel, load_model
from yunque.tokenizer import Tokenizer, tokenizer_of
from yunque.workspace import Workspace

# Read in one turn; who writes waits for no more than that.
_MOST_POSITIONS = 512


class LocalEncoder:
    """An encoder of the workspace, run by this process: it reads texts and writes none."""

    local = True

    def __init__(self, name: str, model: Encoder, tokenizer: Tokenizer) -> None:
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.context = model.config.context
        # Two forwards at once would share the same cores and both be slower.
        self._turn = Turn()

    @classmethod
    def open(cls, workspace: Workspace, ref: str) -> "LocalEncoder":
        """The model `[model/]NAME[@VERSION]`; raises UserError when there is none, or it is no encoder."""
        artifact = workspace.get(ref, "model")
        model = load_model(workspace.files(artifact), torch.float32, Encoder)
        return cls(artifact.ref, model, tokenizer_of(workspace, artifact))

    def embed(self, texts: Sequence[Prompt], wanted: Callable[[], bool] | None = None) -> Embeddings:
        """The vector that the encoder itself gives each text. Raises ContextOverflow, and Unwanted where `wanted`,
        asked now and then, says no."""
        return embed_with(self.alone, self.read(texts), wanted)

    def read(self, texts: Sequence[Prompt]) -> list[list[int]]:
        """The tokens of texts that are to get vectors; raises ContextOverflow."""
        return texts_to_embed(self.model, self.tokenizer, texts, self.name)

    @contextmanager
    def alone(self) -> Iterator[Encoder]:
        """The model, for nobody else meanwhile."""
        with self._turn:
            yield self.model


def texts_to_embed(
    model: LanguageModel, tokenizer: Tokenizer, texts: Sequence[Prompt], name: str
) -> list[list[int]]:
    """The tokens of each text, or list of tokens; `name` is the model's, for what is said to a user.

    Raises ContextOverflow for a text that is too long, UserError for one without tokens.
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
    return ids


def embed_with(
    alone: Callable[[], AbstractContextManager[LanguageModel]],
    ids: Sequence[Sequence[int]],
    wanted: Callable[[], bool] | None = None,
) -> Embeddings:
    """A vector of length 1 for each list of tokens.

    An encoder says it itself. Of a decoder it is the mean of its last hidden vectors, of an encoder-decoder that of
    its source's. `alone` gives the model for a turn: there are many, and others have theirs between them. Raises
    Unwanted where `wanted`, asked before each turn, says no.
    """
    vectors: list[list[float]] = [[] for _ in ids]
    for rows in _batches(ids):
        if wanted and not wanted():
            raise Unwanted
        with alone() as model:
            made = _vectors(model, [list(ids[row]) for row in rows]).tolist()
        for row, vector in zip(rows, made, strict=True):
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


@torch.inference_mode()
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
