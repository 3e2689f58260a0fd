"""A decoder-only model that gives numbers instead of tokens: rewards of whole texts, or values of positions.

A reward model is kept as transformers keeps a `*ForSequenceClassification` with one label: the model without
its head, and a matrix `score.weight`. The number of a text is read at its last token that is not padding.

Shapes: B texts, T positions of the longest, D hidden_size.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import save
from torch import Tensor, nn

from yunque.errors import UserError
from yunque.model.checkpoint import build_model, checkpoint_tensors, configuration_file, parse_configuration
from yunque.model.decoder import Decoder
from yunque.model.family import family_of
from yunque.model.formats.files import Files, TensorEntry, checkpoint_file, read_json
from yunque.model.language_model import CausalModel, EncoderDecoder, LanguageModel
from yunque.model.sources import TensorSource, open_source

SCORE = "score.weight"
_ARCHITECTURE = "ForSequenceClassification"


class ScoredModel(LanguageModel):
    """A model that writes, `body`, with a matrix beside its head that makes one number of a final vector.

    That matrix begins at 0, and so does every number.
    """

    def __init__(self, body: CausalModel | EncoderDecoder) -> None:
        super().__init__(body.config)
        self.body = body
        embedding = getattr(body, "embedding", None)
        assert embedding is not None, "a model that writes has an embedding"
        self.score = nn.Linear(embedding.weight.shape[1], 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def scores(self, hidden: Tensor) -> Tensor:
        """A number [...] for each final vector [..., D]."""
        scores: Tensor = self.score(hidden).squeeze(-1).float()
        return scores

    def text_scores(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """A number [B] for each text, given as ids, none of them empty; texts may be of unequal length."""
        assert isinstance(self.body, CausalModel)
        longest = max(len(ids) for ids in texts)
        device = self.score.weight.device
        input_ids_BT = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in texts], device=device)
        ends_B = torch.tensor([len(ids) - 1 for ids in texts], device=device)
        hidden_BTD = self.body.hidden(input_ids_BT)
        return self.scores(hidden_BTD[torch.arange(len(texts), device=device), ends_B])


def reward_model(model: CausalModel) -> ScoredModel:
    """A reward model with the layers of `model`, which it takes over; its head for tokens is given up.

    Raises UserError where there is no class of such models for this family.
    """
    if not isinstance(model, Decoder):
        raise UserError(
            f"a {model.config.model_type} model cannot become a reward model: start from a decoder-only Transformer"
        )
    body: CausalModel = model
    model.head = None
    model.config = model.config.model_copy(update={"tie_word_embeddings": True})
    return ScoredModel(body)


def save_reward_model(model: ScoredModel, pad_id: int) -> dict[str, bytes]:
    """`config.json` and `model.safetensors` of a reward model, as transformers reads them.

    `pad_id` is the token that fills up a batch: without it no other program finds the end of a text.
    """
    config = model.body.config
    fields = json.loads(configuration_file(config))
    architecture = family_of(config).architecture
    stem = architecture.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    fields |= {
        "architectures": [stem + _ARCHITECTURE],
        "id2label": {"0": "reward"},
        "label2id": {"reward": 0},
        "pad_token_id": pad_id,
    }
    tensors = {**checkpoint_tensors(model.body), SCORE: model.score.weight.detach().contiguous()}
    return {
        "config.json": (json.dumps(fields, indent=2, ensure_ascii=False) + "\n").encode(),
        "model.safetensors": save(dict(sorted(tensors.items())), metadata={"format": "pt"}),
    }


def is_reward_model(files: Files) -> bool:
    """Whether the model in a folder, or in files given by name, gives rewards."""
    names = read_json(checkpoint_file(files, "config.json")).get("architectures")
    return isinstance(names, list) and any(str(name).endswith(_ARCHITECTURE) for name in names)


def load_reward_model(files: Files, dtype: torch.dtype | None = None) -> ScoredModel:
    """The reward model in a folder, or in files given by name; ready for use. Raises UserError."""
    path = checkpoint_file(files, "config.json")
    fields, source = read_json(path), open_source(files)
    if not is_reward_model(files) or SCORE not in source.entries:
        raise UserError(f"{path}: is no reward model (`yunque align reward` makes one)")
    config = parse_configuration({**fields, "tie_word_embeddings": True}, str(path))
    body = build_model(config, _Without(source, SCORE), dtype, CausalModel)
    assert isinstance(body, CausalModel)
    model = ScoredModel(body)
    score = source.read(SCORE)
    if score.shape != model.score.weight.shape:
        raise UserError(
            f"{source.where}: {SCORE} is {list(score.shape)}, and a reward model has {list(model.score.weight.shape)}"
        )
    model.score.weight = nn.Parameter(score.to(dtype or score.dtype))
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class _Without:
    """A source but for one tensor."""

    source: TensorSource
    hidden: str

    @property
    def where(self) -> str:
        return self.source.where

    @property
    def entries(self) -> Mapping[str, TensorEntry]:
        return {name: entry for name, entry in self.source.entries.items() if name != self.hidden}

    def read(self, name: str) -> Tensor:
        return self.source.read(name)
