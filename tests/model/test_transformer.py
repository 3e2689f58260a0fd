"""The 2017 Transformer beside `torch.nn`'s, and at the work it was made for: learning to translate.

Shapes: B batch, T positions of the target, S positions of the source, D hidden_size, V vocab_size.
"""

import itertools
import json
import math
import random
from pathlib import Path

import parity
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from yunque.errors import UserError
from yunque.generate.search import greedy_search
from yunque.model import load_model, save_model
from yunque.model.attention import AttentionBlock
from yunque.model.families import transformer as transformer_module
from yunque.model.families.transformer import Transformer, TransformerConfig

SHAPE = {
    "vocab_size": 60,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_encoder_layers": 3,
    "num_decoder_layers": 2,
    "num_attention_heads": 4,
    "decoder_start_token_id": 0,
}
SOURCES, TARGETS = (11, 5, 8), (7, 9, 4)


def model(seed: int = 0, **changes) -> Transformer:
    made = Transformer(TransformerConfig(**{**SHAPE, **changes}))
    parity.random_weights(made, seed)
    return made.requires_grad_(False)


class TorchTransformer(nn.Module):
    """The layers of `torch.nn` with the weights of one of ours; positions as the paper writes them."""

    def __init__(self, ours: Transformer, norm_first: bool = False) -> None:
        super().__init__()
        config = ours.config
        shape = (
            config.hidden_size,
            config.num_attention_heads,
            config.intermediate_size,
            0.0,
            config.hidden_act,
        )
        settings = {"layer_norm_eps": config.layer_norm_eps, "batch_first": True, "norm_first": norm_first}
        self.encoder = nn.ModuleList(
            nn.TransformerEncoderLayer(*shape, **settings) for _ in ours.encoder.layers
        )
        self.decoder = nn.ModuleList(
            nn.TransformerDecoderLayer(*shape, **settings) for _ in ours.decoder.layers
        )
        self.table = nn.Parameter(ours.embedding.weight.clone())
        for stack, layers in ((self.encoder, ours.encoder.layers), (self.decoder, ours.decoder.layers)):
            for theirs, layer in zip(stack, layers, strict=True):
                _copy_layer(theirs, layer)

    def embed(self, ids_BT: Tensor) -> Tensor:
        size = self.table.shape[1]
        waves = [
            [
                (math.sin if number % 2 == 0 else math.cos)(position / 10000 ** (number // 2 * 2 / size))
                for number in range(size)
            ]
            for position in range(ids_BT.shape[1])
        ]
        return self.table[ids_BT] * math.sqrt(size) + torch.tensor(waves)

    def forward(self, source_BS: Tensor, target_BT: Tensor, padding_BS: Tensor | None = None) -> Tensor:
        memory_BSD, x_BTD = self.embed(source_BS), self.embed(target_BT)
        causal_TT = torch.ones(target_BT.shape[1], target_BT.shape[1]).triu(1).bool()
        for layer in self.encoder:
            memory_BSD = layer(memory_BSD, src_key_padding_mask=padding_BS)
        for layer in self.decoder:
            x_BTD = layer(x_BTD, memory_BSD, tgt_mask=causal_TT, memory_key_padding_mask=padding_BS)
        return x_BTD @ self.table.T


def _copy_layer(theirs: nn.Module, ours: nn.Module) -> None:
    state: dict[str, Tensor] = {}
    parts = {"self_attn": ours.attention, "multihead_attn": ours.cross_attention}
    for name, part in parts.items():
        if part is not None:
            three = (part.query, part.key, part.value)
            state[f"{name}.in_proj_weight"] = torch.cat([one.weight for one in three])
            state[f"{name}.in_proj_bias"] = torch.cat([one.bias for one in three])
            state |= {f"{name}.out_proj.{leaf}": weight for leaf, weight in part.output.named_parameters()}
    norms = [ours.attention_norm, ours.cross_attention_norm, ours.feed_forward_norm]
    for number, norm in enumerate((norm for norm in norms if norm is not None), 1):
        state |= {f"norm{number}.{leaf}": weight for leaf, weight in norm.named_parameters()}
    for name, part in (("linear1", ours.feed_forward.up), ("linear2", ours.feed_forward.down)):
        state |= {f"{name}.{leaf}": weight for leaf, weight in part.named_parameters()}
    theirs.load_state_dict(state)


def batch(seed: int = 1, vocab_size: int = 60, side: str = "right") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ragged sources and targets, each with its mask."""
    sources, targets = (
        parity.ragged(vocab_size, lengths, seed + number) for number, lengths in enumerate((SOURCES, TARGETS))
    )
    return *parity.padded(sources, side), *parity.padded(targets, side)


def assert_same_logits(ours: Transformer, theirs: TorchTransformer) -> None:
    source_BS, mask_BS, target_BT, target_mask_BT = batch(vocab_size=ours.config.vocab_size)
    real = target_mask_BT.bool()
    found_BTV = ours(source_BS, target_BT, mask_BS, target_mask_BT)
    with torch.no_grad():
        parity.assert_same(found_BTV[real], theirs(source_BS, target_BT, ~mask_BS.bool())[real])
        parity.assert_same(ours(source_BS, target_BT), theirs(source_BS, target_BT))


def random_shape(seed: int) -> dict:
    """A shape that nobody picked by hand."""
    pick = random.Random(seed)
    heads = pick.randint(1, 5)
    return {
        "vocab_size": pick.randint(10, 90),
        # An even size, which heads of torch.nn share evenly.
        "hidden_size": heads * pick.choice([2, 4, 6, 10]),
        "intermediate_size": pick.randint(3, 60),
        "num_encoder_layers": pick.randint(1, 4),
        "num_decoder_layers": pick.randint(1, 4),
        "num_attention_heads": heads,
        "layer_norm_eps": pick.choice([1e-6, 1e-5, 1e-3]),
        "hidden_act": pick.choice(["relu", "gelu"]),
    }


@pytest.mark.parametrize("seed", range(6))
def test_a_transformer_of_any_shape_gives_the_scores_of_torch(seed: int) -> None:
    ours = model(seed, **random_shape(seed))
    assert_same_logits(ours, TorchTransformer(ours).eval())


def test_each_thing_that_makes_a_transformer_is_noticed_when_it_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = model()
    theirs = TorchTransformer(ours).eval()
    assert_same_logits(ours, theirs)
    with pytest.raises(AssertionError):
        assert_same_logits(ours, TorchTransformer(ours, norm_first=True).eval())
    for changes in ({"layer_norm_eps": 1e-3}, {"hidden_act": "gelu"}):
        with pytest.raises(AssertionError):
            assert_same_logits(model(**changes), theirs)
    unscaled = model()
    for part in unscaled.modules():
        if isinstance(part, AttentionBlock):
            part.scale = 1.0
    with pytest.raises(AssertionError):
        assert_same_logits(unscaled, theirs)
    monkeypatch.setattr(transformer_module, "sinusoids_at", _halves)
    with pytest.raises(AssertionError):
        assert_same_logits(ours, theirs)


def _halves(positions: Tensor, size: int) -> Tensor:
    """All sines first, then all cosines: the layout of other programs."""
    angles = positions[..., None] * torch.exp(torch.arange(0, size, 2) * (-math.log(10000.0) / size))
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def test_gradients_are_those_of_torch() -> None:
    ours = model().requires_grad_(True)
    theirs = TorchTransformer(ours)
    source_BS, mask_BS, target_BT, _ = batch()
    losses = (
        F.cross_entropy(scores_BTV[:, :-1].flatten(0, 1), target_BT[:, 1:].flatten())
        for scores_BTV in (
            ours(source_BS, target_BT, mask_BS),
            theirs(source_BS, target_BT, ~mask_BS.bool()),
        )
    )
    for loss in losses:
        loss.backward()
    # Gradients are brought into the layout of torch.nn as weights are, once they stand in the weights' place.
    with torch.no_grad():
        for weight in ours.parameters():
            weight.copy_(torch.zeros_like(weight) if weight.grad is None else weight.grad)
    gradients = dict(TorchTransformer(ours).named_parameters())
    overall = torch.cat([weight.grad.flatten() for weight in theirs.parameters()]).norm()
    for name, weight in theirs.named_parameters():
        difference = (gradients[name] - weight.grad).norm()
        assert difference <= 1e-5 * weight.grad.norm() + 1e-7 * overall, name
        assert weight.grad.norm() > 0
    with pytest.raises(AssertionError):
        assert_close(gradients["table"], theirs.table.grad * 1.001)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_pair_in_a_padded_batch_has_the_scores_of_the_pair_alone(side: str) -> None:
    ours = model()
    source_BS, mask_BS, target_BT, target_mask_BT = batch(side=side)
    together_BTV = ours(source_BS, target_BT, mask_BS, target_mask_BT)
    for number in range(len(SOURCES)):
        source, target = (
            source_BS[number][mask_BS[number].bool()],
            target_BT[number][target_mask_BT[number].bool()],
        )
        alone = ours(source[None], target[None])[0]
        parity.assert_same(together_BTV[number][target_mask_BT[number].bool()], alone)
    with pytest.raises(AssertionError):
        assert_close(ours(source_BS, target_BT)[1, -1], together_BTV[1, -1])


def test_pieces_through_a_cache_have_the_scores_of_the_whole() -> None:
    ours = model()
    source_BS, mask_BS, target_BT, _ = batch()
    memory_BSD, cache = ours.encode(source_BS, mask_BS), ours.new_cache(3, 9)
    pieces = [
        ours.logits(ours.decode(target_BT[:, start:end], memory_BSD, mask_BS, cache))
        for start, end in ((0, 3), (3, 4), (4, 9))
    ]
    assert_close(torch.cat(pieces, dim=1), ours(source_BS, target_BT, mask_BS))
    assert cache.length == 9


def test_a_model_comes_back_bit_for_bit(tmp_path: Path) -> None:
    ours = model(dropout=0.3, hidden_act="gelu")
    for name, content in save_model(ours).items():
        (tmp_path / name).write_bytes(content)
    again = load_model(tmp_path, kind=Transformer)
    assert again.config.dropout == 0.3
    assert again.config.architectures == ("YunqueTransformer",)
    state = again.state_dict()
    assert state.keys() == ours.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in ours.state_dict().items())
    source_BS, mask_BS, target_BT, _ = batch()
    assert torch.equal(again(source_BS, target_BT, mask_BS), ours(source_BS, target_BT, mask_BS))


def test_numbers_are_dropped_while_training_only() -> None:
    ours = model(dropout=0.5)
    source_BS, mask_BS, target_BT, _ = batch()
    plain_BTV = ours(source_BS, target_BT, mask_BS)
    assert torch.equal(ours(source_BS, target_BT, mask_BS), plain_BTV)
    ours.train()
    assert not torch.equal(ours(source_BS, target_BT, mask_BS), plain_BTV)


def test_the_same_generator_gives_the_same_model() -> None:
    def made(seed: int) -> Transformer:
        return Transformer(TransformerConfig(**SHAPE), torch.Generator().manual_seed(seed))

    first, same, other = (made(seed).embedding.weight for seed in (1, 1, 2))
    assert torch.equal(first, same) and not torch.equal(first, other)
    # Multiplied by sqrt(D) as they are read, embeddings are as large as the waves of positions.
    assert 0.8 < float(first.detach().std()) * math.sqrt(24) < 1.2


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_attention_heads": 5}, "heads"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"dropout": 1.5}, "dropout"),
        ({"hidden_act": "swoosh"}, "hidden_act"),
        ({"num_decoder_layers": 3}, "missing"),
    ],
    ids=str,
)
def test_a_transformer_that_cannot_be_is_told_in_one_sentence(
    changes: dict, told: str, tmp_path: Path
) -> None:
    files = save_model(model())
    fields = {**TransformerConfig(**SHAPE).model_dump(mode="json", exclude_none=True), **changes}
    for name, content in (files | {"config.json": json.dumps(fields).encode()}).items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=told) as raised:
        load_model(tmp_path)
    assert "\n" not in str(raised.value)


# --- Learning to translate ---

NOUNS = {"gato": "cat", "perro": "dog", "niño": "boy", "pájaro": "bird", "toro": "bull"}
ADJECTIVES = {"negro": "black", "pequeño": "small", "viejo": "old", "rápido": "fast"}
VERBS = {"ve": "sees", "sigue": "follows", "busca": "seeks"}
PAD, START, END = 0, 1, 2


def sentences() -> list[tuple[str, str]]:
    """Pairs such as "el gato negro ve al perro", "the black cat sees the dog": who does it is told by the order, and
    Spanish puts the adjective behind."""
    return [
        (
            f"el {who} {how} {does} al {whom}",
            f"the {ADJECTIVES[how]} {NOUNS[who]} {VERBS[does]} the {NOUNS[whom]}",
        )
        for who, how, does, whom in itertools.product(NOUNS, ADJECTIVES, VERBS, NOUNS)
        if who != whom
    ]


def share_translated() -> float:
    """How many of the sentences that it has not seen a tiny Transformer translates, word by word, once trained."""
    pairs = sentences()
    random.Random(0).shuffle(pairs)
    held_out, trained_on = pairs[:40], pairs[40:]
    words = sorted({word for pair in pairs for text in pair for word in text.split()})
    number = {word: index for index, word in enumerate(words, END + 1)}
    config = TransformerConfig(
        vocab_size=len(words) + END + 1,
        hidden_size=32,
        intermediate_size=64,
        num_encoder_layers=1,
        num_decoder_layers=1,
        num_attention_heads=4,
        dropout=0.0,
        decoder_start_token_id=START,
    )
    translator = Transformer(config, torch.Generator().manual_seed(0)).train()
    sources, targets = (
        torch.tensor([[number[word] for word in pair[side].split()] for pair in trained_on])
        for side in (0, 1)
    )
    begun = F.pad(targets, (1, 0), value=START)
    ended = F.pad(targets, (0, 1), value=END)
    optimizer = torch.optim.Adam(translator.parameters(), lr=4e-3, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 30, (30 / (step + 1)) ** 0.5)
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(130):
        rows = torch.randint(0, len(sources), (64,), generator=generator)
        scores_BTV = translator(sources[rows], begun[rows])
        loss = F.cross_entropy(scores_BTV.flatten(0, 1), ended[rows].flatten(), label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    translator.eval()
    prompts = [[number[word] for word in source.split()] for source, _ in held_out]
    written = greedy_search(translator, prompts, 8, [END])
    wanted = [[*(number[word] for word in target.split()), END] for _, target in held_out]
    return sum(map(list.__eq__, written, wanted)) / len(wanted)


def test_it_learns_to_translate_sentences_it_has_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert share_translated() >= 0.9
    # Negative control: without positions the source is a bag of words, and who does what to whom is a guess.
    monkeypatch.setattr(
        transformer_module, "sinusoids_at", lambda positions, size: torch.zeros(*positions.shape, size)
    )
    assert share_translated() < 0.6
