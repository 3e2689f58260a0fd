"""The native runner: what PyTorch computes, and for a text always the same, whatever is run with it."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from yunque.errors import UserError
from yunque.generate import native_runner as native_running
from yunque.generate.block_pool import BlockPool, PooledText
from yunque.generate.native_runner import NativeRunner, native_runner
from yunque.generate.runner import NoRoom, Work, check_scores
from yunque.model import CausalModel, LanguageModel, new_model, quantize_model
from yunque.model.checkpoint import parse_configuration
from yunque.native import native_library

VOCAB_SIZE = 61
_SMALL = {
    "model_type": "llama",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "tied": {"model_type": "llama", "tie_word_embeddings": True},
    "odd sizes": {
        "model_type": "llama",
        "hidden_size": 42,
        "intermediate_size": 51,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "head_dim": 10,
    },
    "biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "gelu": {"model_type": "llama", "hidden_act": "gelu_new"},
    "llama 3": {
        "model_type": "llama",
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "mistral": {"model_type": "mistral", "sliding_window": 9, "head_dim": 64},
    "qwen 2": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 20,
        "max_window_layers": 1,
    },
    "qwen 3": {"model_type": "qwen3", "head_dim": 128, "num_key_value_heads": 1},
}


def make(kind: str = "float32", **fields: Any) -> CausalModel:
    model = new_model(parse_configuration({**_SMALL, **fields}, "a test"))
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
            weight.copy_(noise * 0.2 if weight.dim() > 1 else 1 + 0.1 * noise)
    model.eval().requires_grad_(False)
    made: LanguageModel = model if kind == "float32" else quantize_model(model, kind, 32)
    assert isinstance(made, CausalModel)
    return made


def pool_of(model: Any, num_blocks: int = 64) -> BlockPool:
    _, heads, head_dim = model.config.heads
    return BlockPool(model.config.num_hidden_layers, (heads, head_dim), num_blocks)


def runner_of(model: Any, num_blocks: int = 64, threads: int = 1) -> NativeRunner:
    if native_library() is None:
        pytest.skip("there is no compiler")
    made = native_runner(model, pool_of(model, num_blocks), threads)
    assert made is not None
    return made


def prompt(length: int, seed: int = 1) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB_SIZE, (length,), generator=generator).tolist()


def read(runner: NativeRunner, ids: Sequence[int], pieces: Sequence[int]) -> Tensor:
    """Scores after every token of a text that is read in pieces."""
    text, scores, begin = runner.pool.open(ids, 0, root=None), list[Tensor](), 0
    for length in pieces:
        scores += runner.run([Work(text, ids[begin : begin + length], length)])
        begin += length
    text.close()
    return torch.cat(scores)


def greedy(runner: NativeRunner, ids: Sequence[int], count: int) -> list[int]:
    text = runner.open(ids, count)
    (scores_1V,) = runner.run([Work(text, text.unread[:])])
    tokens = [int(scores_1V.argmax())]
    while len(tokens) < count:
        (scores_1V,) = runner.run([Work(text, tokens[-1:])])
        tokens.append(int(scores_1V.argmax()))
    text.close()
    return tokens


@torch.inference_mode()
def greedy_in_torch(model: CausalModel, ids: Sequence[int], count: int) -> list[int]:
    cache = model.new_cache(1, len(ids) + count)
    tokens = [int(model(torch.tensor([ids]), cache=cache)[0, -1].argmax())]
    while len(tokens) < count:
        tokens.append(int(model(torch.tensor([tokens[-1:]]), cache=cache)[0, -1].argmax()))
    return tokens


def error(given: Tensor, wanted: Tensor) -> float:
    return float((given - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("kind", ["float32", "int8", "int4"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_and_greedy_tokens_are_those_of_torch(variant: str, kind: str) -> None:
    model, ids = make(kind, **VARIANTS[variant]), prompt(45)
    runner = runner_of(model)
    with torch.inference_mode():
        wanted_TV = model(torch.tensor([ids]))[0]
    given_TV = read(runner, ids, [45])
    # Where a number is half-way between two whole ones, the last bit of a float decides how it is rounded.
    most = 1e-5 if kind == "float32" else 0.02
    assert error(given_TV, wanted_TV) < most
    assert error(given_TV[1:], wanted_TV[:-1]) > 10 * most  # negative control: each a place further
    assert greedy(runner, ids[:9], 30) == greedy_in_torch(model, ids[:9], 30)


@pytest.mark.parametrize("kind", ["float32", "int8", "int4"])
@pytest.mark.parametrize("variant", ["llama", "odd sizes", "mistral", "qwen 3"])
def test_a_prompt_cut_into_pieces_gives_the_same_bits(variant: str, kind: str) -> None:
    runner, ids = runner_of(make(kind, **VARIANTS[variant])), prompt(75)
    whole = read(runner, ids, [75])
    for pieces in ([1] * 75, [16, 16, 16, 16, 11], [5, 1, 40, 2, 27], [74, 1]):
        assert torch.equal(read(runner, ids, pieces), whole)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", ["float32", "int8", "int4"])
def test_a_text_among_fifteen_others_gives_the_same_bits_as_alone(kind: str, threads: int) -> None:
    model = make(kind, **VARIANTS["mistral"])
    prompts = [prompt(3 + 5 * number, seed=number) for number in range(16)]
    alone = runner_of(model)
    wanted = [read(alone, ids, [len(ids)]) for ids in prompts]
    together = runner_of(model, num_blocks=256, threads=threads)
    texts = [together.pool.open(ids, 1, root=None) for ids in prompts]
    # Some are in the middle of their prompts while others are near the end of theirs.
    first = [len(ids) // (2 + number % 3) for number, ids in enumerate(prompts)]
    works = [Work(text, ids[:n], n) for text, ids, n in zip(texts, prompts, first, strict=True)]
    halves = together.run(works)
    rests = together.run(
        [Work(text, ids[n:], len(ids) - n) for text, ids, n in zip(texts, prompts, first, strict=True)]
    )
    given = [torch.cat(parts) for parts in zip(halves, rests, strict=True)]
    assert all(torch.equal(one, other) for one, other in zip(given, wanted, strict=True))
    assert not torch.equal(given[3][:5], given[4][:5])  # negative control


def test_a_beginning_that_is_shared_gives_the_same_bits() -> None:
    runner, ids = runner_of(make("int8", **VARIANTS["llama"])), prompt(50)
    (first,) = runner.run([Work(runner.open(ids, 4), ids)])
    text = runner.open(ids, 4)
    assert text.length == 48 and len(text.unread) == 2
    (again,) = runner.run([Work(text, text.unread[:])])
    assert torch.equal(again, first)


def test_texts_that_part_do_not_disturb_each_other_and_forget_what_is_cut() -> None:
    runner, ids = runner_of(make("int4", **VARIANTS["qwen 3"])), prompt(21)
    text = runner.open(ids, 20)
    runner.run([Work(text, ids)])
    twin = text.fork()
    runner.run([Work(text, prompt(8, seed=7)), Work(twin, prompt(9, seed=8))])
    text.truncate(21)
    twin.truncate(21)
    assert isinstance(twin, PooledText)
    one, other = runner.run([Work(text, [5]), Work(twin, [6])])
    assert torch.equal(one, read(runner, [*ids, 5], [22])[-1:])
    assert torch.equal(other, read(runner, [*ids, 6], [22])[-1:])
    assert not torch.equal(one, other)


def test_scores_that_are_not_wanted_are_not_given() -> None:
    runner, ids = runner_of(make()), prompt(20)
    texts = [runner.pool.open(ids, 0, root=None) for _ in range(2)]
    none, three = runner.run([Work(texts[0], ids, 0), Work(texts[1], ids, 3)])
    assert none.shape == (0, VOCAB_SIZE)
    assert torch.equal(three, read(runner, ids, [20])[-3:])


def test_what_cannot_be_is_told() -> None:
    model = make()
    runner = runner_of(model, num_blocks=2)
    unknown = runner.open([VOCAB_SIZE], 0)
    with pytest.raises(UserError, match="another model's"):
        runner.run([Work(unknown, [VOCAB_SIZE])])
    unknown.close()
    text = runner.open(prompt(20), 0)
    with pytest.raises(NoRoom):
        runner.run([Work(text, prompt(40))])
    model.layers[1].feed_forward.up.weight[3, 3] = float("nan")
    damaged = runner_of(model)
    with pytest.raises(UserError, match="not numbers"):
        check_scores(damaged.run([Work(damaged.open([1], 1), [1])])[0])


def test_models_that_it_does_not_know_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    others = {
        "another family": make(model_type="gpt2", n_embd=32, n_layer=1, n_head=2, n_positions=32),
        "half precision": make().bfloat16(),
        "an activation": make(model_type="llama", hidden_act="mish"),
    }
    changed = make()
    changed.layers[0].attention.query = torch.nn.Sequential(changed.layers[0].attention.query)
    others["a changed layer"] = changed
    for model in others.values():
        assert native_runner(model, BlockPool(2, (2, 16), 4)) is None
    monkeypatch.setattr(native_running, "native_library", lambda: None)
    assert native_runner(make(), pool_of(make())) is None
