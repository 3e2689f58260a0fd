import json
import math

import pytest
import torch
from safetensors.torch import load, save
from small_alignments import ROWS, model, tokenizer
from torch.testing import assert_close

from yunque.errors import UserError
from yunque.model import load_model, new_model
from yunque.model.checkpoint import parse_configuration
from yunque.model.scored import (
    ScoredModel,
    is_reward_model,
    load_reward_model,
    reward_model,
    save_reward_model,
)
from yunque.tokenizer import Tokenizer
from yunque.train.objectives.pairs import Pair, PairOrder
from yunque.train.objectives.reward import PairwiseReward, bradley_terry_losses, judged_pair, judged_text

COMMON = {"vocab_size": 300, "pad_token_id": 1}
LLAMA = {
    **COMMON,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
FAMILIES = {
    "llama": {**LLAMA, "model_type": "llama", "tie_word_embeddings": False},
    "mistral": {**LLAMA, "model_type": "mistral", "tie_word_embeddings": False, "sliding_window": 64},
    "qwen2": {**LLAMA, "model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {**LLAMA, "model_type": "qwen3", "tie_word_embeddings": False, "head_dim": 8},
    "gpt2": {**COMMON, "model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "falcon": {
        **COMMON,
        "model_type": "falcon",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "new_decoder_architecture": False,
        "multi_query": True,
        "alibi": False,
    },
}
TEXTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]


def scored(fields: dict) -> ScoredModel:
    torch.set_num_threads(1)
    body = new_model(parse_configuration(fields, "test"), torch.Generator().manual_seed(0))
    made = reward_model(body)
    torch.nn.init.normal_(made.score.weight, generator=torch.Generator().manual_seed(1))
    return made


def write(folder, files: dict[str, bytes]):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_opens_a_reward_model_and_finds_the_same_numbers(family, tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = scored(FAMILIES[family])
    folder = write(tmp_path / "rm", save_reward_model(ours, pad_id=1))
    theirs, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert theirs.config.num_labels == 1
    # Padding on the right, and no mask: the last token that is not padding is looked for.
    longest = max(map(len, TEXTS))
    batch = torch.tensor([[*ids, *[1] * (longest - len(ids))] for ids in TEXTS])
    with torch.no_grad():
        wanted, found = theirs.eval()(batch).logits[:, 0], ours.eval().text_scores(TEXTS)
    assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(AssertionError):
        assert_close(found, theirs(batch.flip(0)).logits[:, 0], rtol=1e-5, atol=1e-5)
    assert "lm_head.weight" not in load((folder / "model.safetensors").read_bytes())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reward_model_comes_back_bit_for_bit(family, tmp_path) -> None:
    ours = scored(FAMILIES[family])
    files = save_reward_model(ours, pad_id=1)
    folder = write(tmp_path / "rm", files)
    again = load_reward_model(folder)
    assert is_reward_model(folder)
    assert torch.equal(again.text_scores(TEXTS), ours.eval().text_scores(TEXTS))
    resaved = save_reward_model(again, pad_id=1)
    assert resaved["model.safetensors"] == files["model.safetensors"]
    assert json.loads(resaved["config.json"]) == json.loads(files["config.json"])


def test_what_is_no_reward_model_is_told_in_one_sentence(tmp_path) -> None:
    files = save_reward_model(scored(FAMILIES["llama"]), pad_id=1)
    folder = write(tmp_path / "rm", files)
    with pytest.raises(UserError, match=r"score\.weight is not part of it"):
        load_model(folder)
    tensors = load(files["model.safetensors"])
    wide = {**tensors, "score.weight": torch.zeros(2, 32)}
    write(folder, {"model.safetensors": save(wide)})
    with pytest.raises(UserError, match=r"score\.weight is \[2, 32\], and a reward model has \[1, 32\]"):
        load_reward_model(folder)
    write(folder, {"model.safetensors": save({k: v for k, v in tensors.items() if k != "score.weight"})})
    with pytest.raises(UserError, match="is no reward model"):
        load_reward_model(folder)
    plain = json.loads(files["config.json"]) | {"architectures": ["LlamaForCausalLM"]}
    write(folder, {"config.json": json.dumps(plain).encode()})
    with pytest.raises(UserError, match="yunque align reward"):
        load_reward_model(folder)


def test_the_number_of_a_text_does_not_depend_on_its_batch() -> None:
    ours = scored(FAMILIES["llama"]).eval()
    alone = torch.cat([ours.text_scores([ids]) for ids in TEXTS])
    assert_close(ours.text_scores(TEXTS), alone, rtol=1e-5, atol=1e-6)
    hidden = ours.body.hidden(torch.tensor([TEXTS[0]]))
    assert_close(alone[0], ours.score(hidden[0, -1])[0])
    with pytest.raises(AssertionError):
        assert_close(alone[0], ours.score(hidden[0, -2])[0])


def test_the_loss_is_that_of_bradley_and_terry() -> None:
    random = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randn(2, 40, generator=random) * 3
    pairs = zip(chosen.tolist(), rejected.tolist(), strict=True)
    wanted = torch.tensor([-math.log(math.exp(a) / (math.exp(a) + math.exp(b))) for a, b in pairs])
    assert_close(bradley_terry_losses(chosen, rejected), wanted, rtol=1e-6, atol=1e-6)
    with pytest.raises(AssertionError):
        assert_close(bradley_terry_losses(rejected, chosen), wanted, rtol=1e-6, atol=1e-6)


def judged() -> list[Pair]:
    return [judged_pair(tokenizer(), row.id, row.prompt, (row.chosen, row.rejected)) for row in ROWS]


def test_the_first_loss_is_the_logarithm_of_two_and_the_head_learns() -> None:
    ours = reward_model(model())
    objective = PairwiseReward(judged()[:16], judged()[16:], PairOrder(16, 8, 0), 8)
    done = objective.loss(ours, objective.parts(ours, 0)[0])
    assert done.mean.item() == torch.tensor(2.0).log().item()
    assert objective.held_out_figures(ours)["accuracy"] == 0
    optimizer = torch.optim.AdamW(ours.parameters(), lr=3e-3)
    for step in range(30):
        objective.loss(ours, objective.parts(ours, step)[0]).mean.backward()
        optimizer.step()
        optimizer.zero_grad()
    figures = objective.held_out_figures(ours)
    assert figures["accuracy"] == 1 and figures["margin"] > 0.5
    assert objective.validation_loss(ours) == figures["loss"]
    # Negative control: the same model finds worse answers worse.
    swapped = [Pair(pair.id, pair.rejected, pair.chosen) for pair in objective.held_out]
    assert PairwiseReward([], swapped, objective.order, 8).held_out_figures(ours)["accuracy"] == 0


def test_the_number_is_read_at_the_end_token_or_before_it_where_that_is_the_padding() -> None:
    own = tokenizer()
    text = judged_text(own, ROWS[0].prompt, ROWS[0].chosen)
    assert text[-1] == own.end_id != own.pad_id

    class EndIsPadding(Tokenizer):
        @property
        def pad_id(self) -> int:
            return self.end_id

    same = EndIsPadding(own._source)
    assert judged_text(same, ROWS[0].prompt, ROWS[0].chosen) == text[:-1]


def test_a_family_without_such_models_is_refused() -> None:
    rnn = new_model(
        parse_configuration(
            {"model_type": "rnn", "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1}, "t"
        )
    )
    with pytest.raises(UserError, match="cannot become a reward model"):
        reward_model(rnn)


def test_the_head_for_tokens_is_given_up() -> None:
    whole = model(tie_word_embeddings=False)
    assert "head.weight" in whole.state_dict()
    assert not any("head" in name for name in reward_model(whole).state_dict())
