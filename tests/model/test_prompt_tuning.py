"""Prompt tuning: virtual tokens behave as tokens do, on every family that writes text."""

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny_models import MODEL_TYPES, VOCAB_SIZE, ids, output, tiny_model
from torch import Tensor
from torch.testing import assert_close

from yunque.errors import UserError
from yunque.generate.search import greedy_search
from yunque.model import CausalModel, Encoder, EncoderDecoder, LanguageModel, quantize_model
from yunque.model.prompt_tuning import PromptSettings, add_prompt, prompt_vectors, remove_prompt

WRITERS = [name for name in MODEL_TYPES if not isinstance(tiny_model(name), Encoder)]
CAUSAL = [name for name in WRITERS if isinstance(tiny_model(name), CausalModel)]
P = 4


def prompted(model: LanguageModel, settings: dict[str, Any] | None = None, text: tuple[int, ...] = ()) -> Any:
    generator = torch.Generator().manual_seed(0)
    return add_prompt(model, PromptSettings(num_virtual_tokens=P, **(settings or {})), text, generator)


def after(model: LanguageModel, first: Tensor, input_ids_BT: Tensor) -> Tensor:
    """What a model makes of tokens after the tokens `first`."""
    both = torch.cat((first.expand(len(input_ids_BT), -1), input_ids_BT), 1)
    if isinstance(model, EncoderDecoder):
        return model(both, input_ids_BT[:, :5])
    return model(both)[:, len(first) :]


@pytest.mark.parametrize("model_type", WRITERS)
def test_a_prompt_that_is_a_text_reads_as_that_text(model_type: str) -> None:
    base = tiny_model(model_type)
    tuned = prompted(copy.deepcopy(base), {"initialization": "text"}, (7, 8, 9))
    # Three tokens, repeated to fill four places.
    wanted = after(base, torch.tensor([7, 8, 9, 7]), ids())
    assert_close(output(tuned, ids()), wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(AssertionError):
        assert_close(output(tuned, ids()), output(base, ids()), rtol=1e-5, atol=1e-5)
    cut = prompted(copy.deepcopy(base), {"initialization": "text"}, (7, 8, 9, 10, 11, 12))
    assert_close(output(cut, ids()), after(base, torch.tensor([7, 8, 9, 10]), ids()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", CAUSAL)
def test_a_cache_holds_the_prompt_once(model_type: str) -> None:
    tuned = prompted(tiny_model(model_type), {"initialization": "random"})
    whole = tuned(ids(length=9))
    cache = tuned.new_cache(3, 9)
    parts = []
    for start, end in ((0, 4), (4, 5), (5, 8), (8, 9)):
        parts.append(tuned(ids(length=9)[:, start:end], cache=cache))
        assert cache.length == end
    assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)
    cache.reorder(torch.tensor([2, 0, 1]))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("model_type", WRITERS)
def test_a_padded_row_reads_as_it_does_alone(model_type: str, side: str) -> None:
    tuned = prompted(tiny_model(model_type), {"initialization": "random"})
    rows = [ids(1, length, seed=length) for length in (7, 4)]
    pad = torch.zeros(1, 3, dtype=torch.int64)
    left = side == "left"
    batch = torch.cat((rows[0], torch.cat((pad, rows[1]) if left else (rows[1], pad), 1)))
    mask = torch.ones_like(batch)
    mask[1, :3] = mask[1, 3:] = 1
    mask[1, slice(0, 3) if left else slice(4, 7)] = 0
    if isinstance(tuned, EncoderDecoder):
        target = ids(1, 5)
        scores = tuned(batch, target.expand(2, -1), mask)
        assert_close(scores[1:], tuned(rows[1], target), rtol=1e-4, atol=1e-4)
        with pytest.raises(AssertionError):
            assert_close(scores[1:], tuned(batch[1:], target), rtol=1e-4, atol=1e-4)
        return
    cut = slice(3, 7) if left else slice(0, 4)
    assert_close(tuned(batch, mask)[1:, cut], tuned(rows[1]), rtol=1e-4, atol=1e-4)
    cache = tuned.new_cache(2, 7)
    pieces = [tuned(batch[:, :5], mask[:, :5], cache=cache), tuned(batch[:, 5:], mask, cache=cache)]
    assert_close(torch.cat(pieces, 1)[1:, cut], tuned(rows[1]), rtol=1e-4, atol=1e-4)
    if left:
        with pytest.raises(AssertionError):
            assert_close(tuned(batch)[1:, cut], tuned(rows[1]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", WRITERS)
def test_only_the_prompt_is_trained_and_the_model_comes_back(model_type: str) -> None:
    base = tiny_model(model_type)
    tuned = prompted(copy.deepcopy(base).requires_grad_(True))
    vectors = prompt_vectors(tuned)
    assert [id(weight) for weight in tuned.parameters() if weight.requires_grad] == [id(vectors)]
    output(tuned, ids()).square().mean().backward()
    assert vectors.grad is not None and bool(vectors.grad.ne(0).any(1).all())
    again = remove_prompt(tuned)
    assert torch.equal(output(again, ids()), output(base, ids()))
    assert again.state_dict().keys() == base.state_dict().keys()


@pytest.mark.parametrize("model_type", WRITERS)
def test_generation_reads_the_prompt(model_type: str) -> None:
    base = tiny_model(model_type)
    tuned = prompted(copy.deepcopy(base), {"initialization": "text"}, (7, 8, 9, 10))
    prompts = [[5, 6, 7], [9, 4]]
    wanted = greedy_search(base, [[7, 8, 9, 10, *prompt] for prompt in prompts], 6)
    assert greedy_search(tuned, prompts, 6) == wanted


def test_a_prompt_is_counted_once_in_the_parameters_and_the_state() -> None:
    base = tiny_model("llama")
    count = sum(weight.numel() for weight in base.parameters())
    tuned = prompted(base)
    assert sum(weight.numel() for weight in tuned.parameters()) == count + P * 32
    assert sum(name.endswith("vectors_PD") for name in tuned.state_dict()) == 1
    other = copy.deepcopy(tuned)
    with torch.no_grad():
        prompt_vectors(other).add_(1)
    assert not torch.allclose(output(other, ids()), output(tuned, ids()), atol=1e-3)


def test_the_ways_to_begin() -> None:
    table = tiny_model("llama").embedding.weight
    drawn = prompt_vectors(prompted(tiny_model("llama")))
    assert all(bool((row == table).all(1).any()) for row in drawn)
    free = prompt_vectors(prompted(tiny_model("llama"), {"initialization": "random"}))
    assert float(free.abs().max()) <= 0.5 and not any(bool((row == table).all(1).any()) for row in free)
    again = prompt_vectors(prompted(tiny_model("llama"), {"initialization": "random"}))
    assert torch.equal(free, again)


def test_a_quantized_or_half_precision_base_reads_its_prompt() -> None:
    for base in (quantize_model(tiny_model("llama")), tiny_model("llama").bfloat16()):
        tuned = prompted(copy.deepcopy(base), {"initialization": "text"}, (7, 8, 9, 10))
        assert prompt_vectors(tuned).dtype == torch.float32
        with torch.no_grad():
            wanted = after(base, torch.tensor([7, 8, 9, 10]), ids())
            assert_close(output(tuned, ids()), wanted)
        output(tuned.train(), ids()).float().square().mean().backward()
        assert bool(prompt_vectors(tuned).grad.isfinite().all())


def test_given_positions_are_those_of_the_text() -> None:
    tuned = prompted(tiny_model("gpt2"), {"initialization": "random"})
    positions = torch.arange(7).expand(3, -1)
    assert_close(tuned(ids(), position_ids_BT=positions), tuned(ids()), rtol=1e-5, atol=1e-5)
    cache = tuned.new_cache(3, 7)
    pieces = [
        tuned(ids()[:, cut], position_ids_BT=positions[:, cut], cache=cache)
        for cut in (slice(5), slice(5, 7))
    ]
    assert_close(torch.cat(pieces, 1), tuned(ids()), rtol=1e-4, atol=1e-5)


def test_the_context_is_shorter_by_the_prompt() -> None:
    base = tiny_model("gpt2")
    tuned = prompted(base)
    assert (tuned.config.context, base.config.context) == (64 - P, 64)
    assert output(tuned, ids(1, 64 - P)).shape == (1, 64 - P, VOCAB_SIZE)
    assert prompted(tiny_model("t5")).config.context is None


def test_mistakes_are_told() -> None:
    with pytest.raises(UserError, match="64 leave no room for text in a context of 64 tokens"):
        add_prompt(tiny_model("gpt2"), PromptSettings(num_virtual_tokens=64))
    with pytest.raises(UserError, match="has no tokens"):
        prompted(tiny_model("gpt2"), {"initialization": "text"})
    with pytest.raises(UserError, match="beyond the model's vocabulary of 60"):
        prompted(tiny_model("gpt2"), {"initialization": "text"}, (1, 60))
    with pytest.raises(UserError, match="give each row a single document"):
        prompted(tiny_model("llama"))(ids(), segment_ids_BT=torch.ones_like(ids()))
    for wrong in ({"num_virtual_tokens": 0}, {"initialization": "zeros"}):
        with pytest.raises(ValidationError):
            PromptSettings(**wrong)
