"""Texts read side by side are those that each would be alone, in every family."""

import pytest
import torch
from runners import FIELDS, VOCAB_SIZE, Writer, alone, prompts, small_model, write
from torch.testing import assert_close

from yunque.errors import UserError
from yunque.generate.lone_runner import LoneRunner
from yunque.generate.runner import NoRoom, Work
from yunque.generate.search import greedy_search
from yunque.generate.torch_runner import TorchRunner, torch_runner
from yunque.model import load_model
from yunque.model.prompt_tuning import PromptSettings, add_prompt

LENGTH = 24
PROMPTS = prompts()
DECODERS = [name for name in FIELDS if name not in ("t5", "mt5", "transformer", "rnn", "rnn-seq2seq")]
# Every family in floats; in whole numbers one of each kind of attention and of cache.
CASES = [(name, None) for name in FIELDS]
CASES += [(name, kind) for name in ("llama", "gpt2", "t5", "rnn") for kind in ("int8", "int4")]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_text_is_the_same_alone_and_among_fifteen_others(name: str, kind: str | None) -> None:
    model = small_model(name, kind)
    expected = [greedy_search(model, [prompt], LENGTH)[0] for prompt in PROMPTS]
    # They join at different steps, and leave at different ones.
    writers = [Writer(prompt, LENGTH - number % 5, joins=number % 7) for number, prompt in enumerate(PROMPTS)]
    runner = torch_runner(model)
    assert write(runner, writers, chunk=7) == [
        ids[: LENGTH - number % 5] for number, ids in enumerate(expected)
    ]
    pooled = isinstance(runner, TorchRunner)
    for writer in writers[:4]:
        lone = alone(torch_runner(model), writer.prompt, writer.count)
        # A recurrent network's prompt is multiplied chunk by chunk, and theirs were not cut alike.
        assert_close(
            torch.stack(writer.scores), torch.stack(lone.scores), atol=1e-6 if pooled else 1e-5, rtol=0
        )
    assert not pooled or runner.pool.blocks_in_use == 0
    # Negative control: what is written depends on the prompt.
    assert len({tuple(ids) for ids in expected}) > 4


def read(runner, text, ids: list[int], wanted: int | None = None) -> torch.Tensor:
    """The scores after each of these tokens, or after the last `wanted`."""
    return runner.run([Work(text, ids, len(ids) if wanted is None else wanted)])[0]


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("chunk", [64, 9])
def test_all_scores_of_a_prompt_are_those_of_the_model(name: str, chunk: int) -> None:
    model, prompt = small_model(name), PROMPTS[0]
    runner = torch_runner(model)
    text = runner.open(prompt, 0)
    chunks = [prompt[start : start + chunk] for start in range(0, len(prompt), chunk)]
    found = torch.cat([read(runner, text, ids) for ids in chunks])
    expected = model(torch.tensor([prompt]))[0]
    assert_close(found, expected, atol=1e-5, rtol=0)
    with pytest.raises(AssertionError):
        assert_close(found[1:], expected[:-1], atol=1e-5, rtol=0)


def test_only_the_scores_that_are_wanted_are_given() -> None:
    model = small_model("llama")
    runner = torch_runner(model)
    texts = [runner.open(prompt, 5) for prompt in ([3, 4, 5, 6], [7, 8, 9])]
    works = [Work(texts[0], [3, 4, 5, 6], 0), Work(texts[1], [7, 8, 9], 2)]
    none, two = runner.run(works)
    assert none.shape == (0, VOCAB_SIZE)
    assert_close(two, model(torch.tensor([[7, 8, 9]]))[0, 1:], atol=1e-5, rtol=0)
    none, three = runner.run([Work(texts[0], [10], 0), Work(texts[1], [11, 12, 13], 3)])
    assert none.shape == (0, VOCAB_SIZE) and three.shape == (3, VOCAB_SIZE)


def test_texts_are_those_of_transformers(tmp_path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    theirs = LlamaForCausalLM(LlamaConfig(vocab_size=60, num_key_value_heads=2, **sizes)).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.25)
    theirs.save_pretrained(tmp_path)
    expected = [
        theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            do_sample=False,
            max_new_tokens=LENGTH,
            min_new_tokens=LENGTH,
            pad_token_id=0,
            eos_token_id=None,
        )[0, len(prompt) :].tolist()
        for prompt in PROMPTS
    ]
    runner = torch_runner(load_model(tmp_path))
    writers = [Writer(prompt, LENGTH, joins=number % 3) for number, prompt in enumerate(PROMPTS)]
    assert write(runner, writers, chunk=16) == expected


@pytest.mark.parametrize("name", [*DECODERS, "t5", "transformer"])
def test_guessed_tokens_are_checked_in_one_step_and_forgotten(name: str) -> None:
    model, prompt = small_model(name), PROMPTS[0][:30]
    runner = torch_runner(model)
    lone = alone(runner, prompt, LENGTH)
    text, other = runner.open(prompt, LENGTH), runner.open(PROMPTS[1], LENGTH)
    first = read(runner, text, text.unread, 1)
    read(runner, other, other.unread, 1)
    right, wrong = lone.written[:6], [1, 2, 1, 2]
    checked, _ = runner.run([Work(text, right + wrong, len(right + wrong)), Work(other, [5], 1)])
    scores = torch.cat((first, checked[: len(right)]))
    assert_close(scores, torch.stack(lone.scores[: len(right) + 1]), atol=1e-6, rtol=0)
    text.truncate(text.length - len(wrong))
    for place in range(len(right), LENGTH - 1):
        (found,) = runner.run([Work(text, [lone.written[place]])])
        assert_close(found[0], lone.scores[place + 1], atol=1e-6, rtol=0)
    # Negative control: without forgetting, what was guessed wrongly is seen.
    twin = text.fork()
    runner.run([Work(twin, wrong, 0)])
    (seen,) = runner.run([Work(twin, lone.written[-1:])])
    (unseen,) = runner.run([Work(text, lone.written[-1:])])
    assert not torch.allclose(seen, unseen, atol=1e-3)


@pytest.mark.parametrize("name", FIELDS)
def test_forks_go_their_own_ways(name: str) -> None:
    model, prompt = small_model(name), PROMPTS[0][:21]
    runner = torch_runner(model)
    text = runner.open(prompt, 9)
    read(runner, text, text.unread, 1)
    ways = [[7, 8, 9], [10, 11, 12], [13, 14, 15]]
    texts = [text, text.fork(), text.fork()]
    for place in range(3):
        found = runner.run([Work(one, [way[place]]) for one, way in zip(texts, ways, strict=True)])
    for way, scores in zip(ways, found, strict=True):
        fresh = torch_runner(model)
        single = fresh.open(prompt, 9)
        read(fresh, single, single.unread, 1)
        for token in way:
            (expected,) = fresh.run([Work(single, [token])])
        assert_close(scores, expected, atol=1e-6, rtol=0)
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    for one in texts:
        one.close()
    if isinstance(runner, TorchRunner):
        assert runner.pool.blocks_in_use == 0


@pytest.mark.parametrize("name", DECODERS)
def test_a_shared_beginning_is_read_once_and_gives_the_same_text(name: str) -> None:
    model, prompt = small_model(name), PROMPTS[0]
    runner = torch_runner(model)
    cold = alone(runner, prompt, LENGTH)
    assert runner.pool.tokens_found == 0
    warm = alone(runner, prompt, LENGTH)
    assert runner.pool.tokens_found == 48
    assert_close(torch.stack(warm.scores), torch.stack(cold.scores), atol=1e-6, rtol=0)
    # What was written is found too, by the prompt of a next turn.
    turn = prompt + cold.written[:20]
    assert runner.open(turn, 2).length == 64
    # Negative control: it is what lies in the blocks that counts.
    for values in runner.pool.values:
        values.add_(1.0)
    spoilt = alone(runner, prompt, LENGTH)
    assert not torch.allclose(spoilt.scores[0], cold.scores[0], atol=1e-3)


def test_what_memory_held_before_shows_nowhere() -> None:
    for name in ("llama", "t5", "falcon with alibi"):
        model = small_model(name)
        clean, dirty = torch_runner(model), torch_runner(model)
        for numbers in (*dirty.pool.keys, *dirty.pool.values):
            numbers.fill_(float("nan"))
        for prompt in PROMPTS[:3]:
            expected, found = alone(clean, prompt, 5), alone(dirty, prompt, 5)
            assert torch.equal(torch.stack(found.scores), torch.stack(expected.scores))


def test_a_text_may_fill_the_context() -> None:
    model = small_model("gpt2")  # positions are a table, which has no row beyond
    runner = torch_runner(model)
    prompt = [*PROMPTS[0], *PROMPTS[0]][:93]
    assert alone(runner, prompt, 4).written == greedy_search(model, [prompt], 4)[0]


@pytest.mark.parametrize("rope_type", ["longrope", "dynamic"])
def test_angles_that_depend_on_the_length_are_those_of_each_text(rope_type: str) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0}
    if rope_type == "longrope":
        rope = {
            "rope_type": "longrope",
            "short_factor": [1.0, 1.5, 2.0, 2.5],
            "long_factor": [4.0, 5.0, 6.0, 8.0],
        }
        rope["original_max_position_embeddings"] = 32
    model = small_model("llama", rope_parameters=rope)
    texts = [PROMPTS[0][:length] for length in (20, 45, 31, 33)]
    expected = [greedy_search(model, [prompt], 8)[0] for prompt in texts]
    writers = [Writer(prompt, 8, joins=2 * number) for number, prompt in enumerate(texts)]
    assert write(torch_runner(model), writers, chunk=16) == expected


def test_a_full_cache_is_told_and_room_that_was_given_is_kept() -> None:
    model = small_model("llama")
    block = 2 * 2 * 2 * 16 * 8 * 4
    runner = torch_runner(model, pool_bytes=6 * block)
    text = runner.open(PROMPTS[0][:40], 24)
    with pytest.raises(NoRoom):
        runner.open([5] * 20, 20)
    small = runner.open([5], 20)
    read(runner, text, text.unread, 1)
    for _ in range(24):
        read(runner, text, [7])
    text.close(), small.close()
    assert runner.pool.blocks_in_use == 0
    with pytest.raises(UserError, match="does not fit in the cache"):
        runner.open([5], 96)


def test_a_source_that_does_not_fit_takes_nothing() -> None:
    runner = torch_runner(small_model("t5"), pool_bytes=6 * 2 * 2 * 4 * 16 * 8 * 4)
    text = runner.open([5] * 40, 20)
    with pytest.raises(NoRoom):
        runner.open([6] * 10, 3)
    text.close()
    assert runner.pool.blocks_in_use == 0
    runner.open([6] * 40, 40).close()


def test_tokens_that_the_model_does_not_know_and_models_that_write_nothing_are_told() -> None:
    for name in ("llama", "t5", "rnn"):
        with pytest.raises(UserError, match="number 60 in this text"):
            torch_runner(small_model(name)).open([5, 60], 4)
    with pytest.raises(UserError, match="writes no text"):
        torch_runner(small_model("llama", model_type="bert", num_hidden_layers=1))


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_a_model_with_a_prompt_of_its_own_is_read_text_by_text(name: str) -> None:
    model = add_prompt(small_model(name), PromptSettings(num_virtual_tokens=5)).eval()
    expected = [greedy_search(model, [prompt], 8)[0] for prompt in PROMPTS[:4]]
    runner = torch_runner(model)
    assert isinstance(runner, LoneRunner) and not runner.can_truncate
    assert write(runner, [Writer(prompt, 8) for prompt in PROMPTS[:4]], chunk=9) == expected


def test_texts_with_caches_of_their_own_have_a_limit_too() -> None:
    runner = torch_runner(add_prompt(small_model("llama"), PromptSettings(num_virtual_tokens=5)), 25_000)
    text = runner.open([5] * 40, 20)
    with pytest.raises(NoRoom):
        runner.open([5] * 40, 20)
    with pytest.raises(NoRoom):
        text.fork()
    text.close()
    runner.open([5] * 40, 20)
