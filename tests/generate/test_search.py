"""Search against transformers' own, on tiny random models of several families."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    T5Config,
)

from yunque.errors import UserError
from yunque.generate.search import beam_search, greedy_search
from yunque.generate.state import left_padded
from yunque.model import LanguageModel, load_model

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "mistral": MistralConfig(**SIZES, sliding_window=6),
    "qwen3": Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=True),
    "gpt2": GPT2Config(
        vocab_size=60,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    ),
    "t5": T5Config(
        vocab_size=60, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
    ),
}
PROMPTS = [[5, 9, 11, 4, 30, 8], [7, 12], [33, 3, 3, 40, 21, 22, 23, 9, 50]]


def pair(tmp_path, name: str, end_bias: float = 0.0) -> tuple[PreTrainedModel, LanguageModel]:
    """The same random model, theirs and ours; weights are large enough for texts that wander."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config: PreTrainedConfig = CONFIGS[name]
    opener = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    theirs = opener.from_config(config).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.25)
        if end_bias:  # the end token leans towards every text
            theirs.get_output_embeddings().weight[config.eos_token_id] *= end_bias
    theirs.save_pretrained(tmp_path)
    return theirs, load_model(tmp_path)


def generated(theirs: PreTrainedModel, prompts: list[list[int]], **settings) -> list[list[int]]:
    """What transformers writes after each prompt, up to and with the end token."""
    ids, mask = left_padded(prompts)
    if theirs.config.is_encoder_decoder and mask is not None:
        rows = [prompt + [0] * (ids.shape[1] - len(prompt)) for prompt in prompts]
        ids, mask = (
            torch.tensor(rows),
            torch.tensor([[1] * len(p) + [0] * (ids.shape[1] - len(p)) for p in prompts]),
        )
    mask = torch.ones_like(ids) if mask is None else mask
    with torch.inference_mode():
        rows = theirs.generate(ids, attention_mask=mask, do_sample=False, **settings).tolist()
    end = theirs.config.eos_token_id
    start = 1 if theirs.config.is_encoder_decoder else ids.shape[1]
    return [row[start : row.index(end, start) + 1] if end in row[start:] else row[start:] for row in rows]


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens_are_those_of_transformers(tmp_path, name: str) -> None:
    theirs, ours = pair(tmp_path, name)
    stop = {theirs.config.eos_token_id}
    for prompts in ([PROMPTS[0]], PROMPTS):
        assert greedy_search(ours, prompts, 64, stop) == generated(theirs, prompts, max_new_tokens=64)
    assert max(map(len, greedy_search(ours, PROMPTS, 64, ()))) == 64
    # Negative control: the tokens depend on the weights.
    other = next(weight for weight in ours.parameters() if weight.dim() > 1)
    other.add_(0.5 * torch.randn_like(other))
    assert greedy_search(ours, PROMPTS, 64, stop) != generated(theirs, PROMPTS, max_new_tokens=64)


@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.0, -1.0])
@pytest.mark.parametrize("end_bias", [0.0, 2.0])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_best_of_four_beams_is_that_of_transformers(
    tmp_path, name: str, end_bias: float, length_penalty: float
) -> None:
    theirs, ours = pair(tmp_path, name, end_bias)
    settings = {"max_new_tokens": 24, "num_beams": 4, "length_penalty": length_penalty}
    found = beam_search(ours, PROMPTS, 4, 24, {theirs.config.eos_token_id}, length_penalty)
    assert [beams[0].ids for beams in found] == generated(theirs, PROMPTS, **settings)


def test_all_beams_and_their_scores_are_those_of_transformers(tmp_path) -> None:
    theirs, ours = pair(tmp_path, "llama", end_bias=2.0)
    theirs.generation_config.pad_token_id = 2
    ids = torch.tensor([PROMPTS[0]])
    out = theirs.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        num_beams=4,
        num_return_sequences=4,
        max_new_tokens=24,
        return_dict_in_generate=True,
        output_scores=True,
    )
    beams = beam_search(ours, [PROMPTS[0]], 4, 24, {2})[0]
    torch.testing.assert_close(
        torch.tensor([beam.score for beam in beams]), out.sequences_scores, rtol=1e-5, atol=1e-5
    )
    width = max(len(beam.ids) for beam in beams)
    rows = [beam.ids + [2] * (width - len(beam.ids)) for beam in beams]
    assert rows == out.sequences[:, ids.shape[1] :].tolist()


def test_beams_find_texts_at_least_as_likely_as_the_greedy_one(tmp_path) -> None:
    _, ours = pair(tmp_path, "llama")
    greedy = beam_search(ours, PROMPTS, 1, 12, (), 0.0)
    wide = beam_search(ours, PROMPTS, 8, 12, (), 0.0)
    assert [beams[0].ids for beams in greedy] == greedy_search(ours, PROMPTS, 12)
    assert all(many[0].score >= one[0].score - 1e-5 for one, many in zip(greedy, wide, strict=True))
    assert any(many[0].score > one[0].score + 0.01 for one, many in zip(greedy, wide, strict=True))


def test_banned_tokens_are_in_no_beam(tmp_path) -> None:
    _, ours = pair(tmp_path, "llama")
    free = {id for beam in beam_search(ours, PROMPTS, 3, 12)[0] for id in beam.ids}
    banned = sorted(free)[:2]
    found = beam_search(ours, PROMPTS, 3, 12, banned_ids=banned)
    assert not any(set(beam.ids) & set(banned) for beams in found for beam in beams)


def test_an_encoder_writes_no_text(tmp_path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="writes no text"):
        greedy_search(load_model(tmp_path), PROMPTS, 3)


def test_nothing_asked_gives_nothing(tmp_path) -> None:
    _, ours = pair(tmp_path, "llama")
    assert greedy_search(ours, PROMPTS, 0) == [[], [], []]
    assert greedy_search(ours, [], 5) == [] == beam_search(ours, [], 4, 5)
    assert [beams[0].ids for beams in beam_search(ours, PROMPTS, 4, 0)] == [[], [], []]


def test_scores_that_are_no_numbers_are_told(tmp_path) -> None:
    _, ours = pair(tmp_path, "llama")
    ours.norm.weight[3] = float("nan")
    for search in (lambda: greedy_search(ours, PROMPTS, 5), lambda: beam_search(ours, PROMPTS, 2, 5)):
        with pytest.raises(UserError, match="scores are not numbers"):
            search()


def test_a_token_that_the_model_does_not_know_is_told(tmp_path) -> None:
    _, ours = pair(tmp_path, "llama")
    with pytest.raises(UserError, match="number 60 in this text"):
        greedy_search(ours, [[5, 60]], 5)
