"""Adapters in PEFT's files: ones that PEFT made, ours as PEFT reads them, and files that are no good."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load, load_file, save_file
from tiny_models import ids, output, tiny_model
from torch import Tensor, nn
from torch.testing import assert_close

from yunque.errors import UserError
from yunque.model import EncoderDecoder, LanguageModel, load_model, quantize_model, save_model
from yunque.model.adapter_files import CONFIGURATION, WEIGHTS, load_adapter, save_adapter
from yunque.model.lora import LoraSettings, add_lora, lora_adapters, lora_names, select_adapter
from yunque.model.prompt_tuning import PromptSettings, add_prompt

VOCAB = 60
LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
FALCON = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
THEIRS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**LLAMA, head_dim=8)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    ),
    "falcon": lambda: transformers.FalconForCausalLM(
        transformers.FalconConfig(**FALCON, new_decoder_architecture=True, num_kv_heads=2, bias=True)
    ),
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
        )
    ),
    "bert": lambda: transformers.BertModel(
        transformers.BertConfig(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
        )
    ),
}
# Theirs that share a matrix with others, with more than one ending, and with their own ranks.
LORA: dict[str, dict[str, Any]] = {
    "llama": {"target_modules": ["q_proj", "v_proj", "down_proj"], "rank_pattern": {"down_proj": 3}},
    "qwen3": {"target_modules": ["layers.1.self_attn.q_proj", "o_proj"], "use_rslora": True},
    "gpt2": {"target_modules": ["c_attn", "mlp.c_proj"], "alpha_pattern": {"h.1.attn.c_attn": 5}},
    "falcon": {"target_modules": ["query_key_value", "dense_h_to_4h"], "use_rslora": True},
    "bert": {"target_modules": ["query", "output.dense"]},
    "t5": {"target_modules": ["q", "v", "wo"], "rank_pattern": {r"decoder.*SelfAttention\.q": 2}},
}
FAMILIES = list(THEIRS)


@torch.no_grad()
def scrambled(model: nn.Module, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        weight.copy_(noise * 0.2 if weight.dim() > 1 else noise * 0.1 + (0 if name.endswith("bias") else 1))
    return model.eval()


def opened(theirs: Any, folder: Path) -> LanguageModel:
    theirs.save_pretrained(folder)
    return load_model(folder)


def with_lora(family: str, folder: Path, **changes: Any) -> tuple[Any, LanguageModel, Path]:
    """A PEFT model with a trained adapter, our model of the same base, and the adapter's folder."""
    theirs = scrambled(THEIRS[family]())
    ours = opened(theirs, folder / "base")
    settings = {"r": 4, "lora_alpha": 6, **LORA[family], **changes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = peft.get_peft_model(theirs, peft.LoraConfig(**settings))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(7)
        for name, weight in tuned.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    tuned.eval().save_pretrained(folder / "adapter")
    return tuned, ours, folder / "adapter"


@torch.no_grad()
def their_output(theirs: Any, input_ids_BT: Tensor, encoder_decoder: bool) -> Tensor:
    if encoder_decoder:
        return theirs(input_ids=input_ids_BT, decoder_input_ids=input_ids_BT[:, :5]).logits
    found = theirs(input_ids=input_ids_BT)
    return found.last_hidden_state if "last_hidden_state" in found else found.logits


def assert_same_scores(ours: LanguageModel, theirs: Any) -> None:
    wanted = their_output(theirs, ids(), isinstance(ours, EncoderDecoder))
    assert_close(output(ours, ids()), wanted, rtol=1e-5, atol=1e-5)


def write(files: dict[str, bytes], folder: Path) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_of_peft_gives_the_scores_that_peft_gives(family: str, tmp_path: Path) -> None:
    theirs, ours, folder = with_lora(family, tmp_path)
    load_adapter(ours, folder)
    assert_same_scores(ours, theirs)
    # Negative control: the base alone does not.
    select_adapter(ours, None)
    with pytest.raises(AssertionError):
        assert_same_scores(ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_of_peft_comes_back_tensor_by_tensor(family: str, tmp_path: Path) -> None:
    theirs, ours, folder = with_lora(family, tmp_path)
    load_adapter(ours, folder)
    files = save_adapter(ours, base="base")
    before, after = load_file(folder / WEIGHTS), load(files[WEIGHTS])
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    # And its configuration makes the same of them.
    again = load_adapter(load_model(tmp_path / "base"), write(files, tmp_path / "again"))
    assert_same_scores(again, theirs)
    base = scrambled(THEIRS[family]())
    assert_same_scores(ours, peft.PeftModel.from_pretrained(base, tmp_path / "again").eval())


@pytest.mark.parametrize("targets", ["attention", "all-linear", ("query",), ("layers.1.attention.value",)])
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_reads_our_adapters(family: str, targets: Any, tmp_path: Path) -> None:
    if family == "t5" and not isinstance(targets, str):
        targets = tuple(f"decoder.layers.1.attention.{name.rpartition('.')[2]}" for name in targets)
    base = scrambled(THEIRS[family]())
    ours = opened(base, tmp_path / "base")
    alone = output(ours, ids())
    add_lora(ours, LoraSettings(rank=4, alpha=6, targets=targets), torch.Generator().manual_seed(0))
    with torch.no_grad():
        for number, adapter in enumerate(lora_adapters(ours).values()):
            generator = torch.Generator().manual_seed(number)
            adapter.b_OR.copy_(torch.randn(adapter.b_OR.shape, generator=generator) * 0.2)
    folder = write(save_adapter(ours), tmp_path / "adapter")
    with warnings.catch_warnings():
        # A matrix too many or too few would only be a warning.
        warnings.simplefilter("error", UserWarning)
        theirs = peft.PeftModel.from_pretrained(base, folder).eval()
    assert_same_scores(ours, theirs)
    again = load_adapter(load_model(tmp_path / "base"), folder)
    assert_close(output(again, ids()), output(ours, ids()), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(output(again, ids()), alone, atol=1e-3)
    # Matrices of ours that are one of theirs come back as they were, not three times as wide.
    before, after = lora_adapters(ours), lora_adapters(again)
    assert before.keys() == after.keys()
    for name, adapter in before.items():
        assert torch.equal(adapter.a_RI, after[name].a_RI) and torch.equal(adapter.b_OR, after[name].b_OR)
        assert adapter.scale == pytest.approx(after[name].scale, rel=1e-12)


def test_a_fresh_adapter_survives_its_files(tmp_path: Path) -> None:
    for family in ("gpt2", "llama"):
        ours = tiny_model(family)
        wanted = output(ours, ids())
        add_lora(ours, LoraSettings(), torch.Generator().manual_seed(0))
        again = load_adapter(tiny_model(family), write(save_adapter(ours), tmp_path / family), trainable=True)
        assert torch.equal(output(again, ids()), wanted)
        assert all(
            weight.requires_grad for part in lora_adapters(again).values() for weight in part.parameters()
        )


def test_names_in_the_configuration_are_short_and_hit_nothing_else() -> None:
    ours = tiny_model("gpt2")
    add_lora(ours, LoraSettings(rank=4, alpha=8))
    config = json.loads(save_adapter(ours, base="gpt2")[CONFIGURATION])
    assert config["target_modules"] == ["attn.c_proj", "c_attn"]
    assert config["fan_in_fan_out"] is True
    assert config["task_type"] == "CAUSAL_LM" and config["base_model_name_or_path"] == "gpt2"
    # Three of ours are one of theirs, three times as wide.
    assert sorted([config["r"], *config["rank_pattern"].values()]) == [4, 12]
    assert sorted([config["lora_alpha"], *config["alpha_pattern"].values()]) == [8, 24]


def test_an_adapter_of_the_last_layers_names_them(tmp_path: Path) -> None:
    base = scrambled(THEIRS["llama"]())
    ours = opened(base, tmp_path / "base")
    add_lora(ours, LoraSettings(last_layers=1, targets=("query",)), torch.Generator().manual_seed(0))
    with torch.no_grad():
        lora_adapters(ours)["layers.1.attention.query"].b_OR.fill_(0.3)
    files = save_adapter(ours)
    assert json.loads(files[CONFIGURATION])["target_modules"] == ["1.self_attn.q_proj"]
    assert_same_scores(ours, peft.PeftModel.from_pretrained(base, write(files, tmp_path / "adapter")).eval())


def test_half_precision_files_keep_their_type(tmp_path: Path) -> None:
    _, ours, folder = with_lora("llama", tmp_path)
    before = {name: tensor.bfloat16() for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(before, folder / WEIGHTS)
    after = load(save_adapter(load_adapter(ours, folder))[WEIGHTS])
    assert all(
        tensor.dtype == after[name].dtype and torch.equal(tensor, after[name])
        for name, tensor in before.items()
    )
    # What is trained further is kept as it is trained.
    ours = load_adapter(load_model(tmp_path / "base"), folder, trainable=True)
    assert {tensor.dtype for tensor in load(save_adapter(ours)[WEIGHTS]).values()} == {torch.float32}


def test_adapters_of_peft_lie_side_by_side_and_on_a_quantized_base(tmp_path: Path) -> None:
    theirs, ours, folder = with_lora("llama", tmp_path)
    small = quantize_model(ours)
    for model in (ours, small):
        load_adapter(model, folder, "one")
        load_adapter(model, folder, "two.b")
        assert lora_names(model) == ("one", "two.b")
        with pytest.raises(UserError, match="has an adapter 'one' already"):
            load_adapter(model, folder, "one")
    select_adapter(ours, ["one", "two.b", "one"])
    assert_same_scores(ours, theirs)
    assert load(save_adapter(small, "one")[WEIGHTS]).keys() == load_file(folder / WEIGHTS).keys()


def test_the_pickled_form_is_read_too(tmp_path: Path) -> None:
    theirs, ours, folder = with_lora("llama", tmp_path)
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()
    load_adapter(ours, folder)
    assert_same_scores(ours, theirs)


# Prompts.


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon", "t5"])
def test_a_prompt_of_peft_gives_the_scores_that_peft_gives_and_comes_back(
    family: str, tmp_path: Path
) -> None:
    theirs = scrambled(THEIRS[family]())
    ours = opened(theirs, tmp_path / "base")
    task = "SEQ_2_SEQ_LM" if family == "t5" else "CAUSAL_LM"
    config = peft.PromptTuningConfig(
        task_type=task, num_virtual_tokens=5, num_transformer_submodules=1, token_dim=32
    )
    tuned = scrambled(peft.get_peft_model(theirs, config), 3)
    # The base was scrambled once more.
    ours = opened(tuned.get_base_model(), tmp_path / "again")
    tuned.save_pretrained(tmp_path / "prompt")
    prompted = load_adapter(ours, tmp_path / "prompt")
    wanted = their_output(tuned, ids(), family == "t5")
    if family != "t5":
        wanted = wanted[:, 5:]  # theirs has scores for the virtual tokens as well
    assert_close(output(prompted, ids()), wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(AssertionError):
        assert_close(output(load_model(tmp_path / "again"), ids()), wanted, rtol=1e-5, atol=1e-5)
    files = save_adapter(prompted)
    before, after = load_file(tmp_path / "prompt" / WEIGHTS), load(files[WEIGHTS])
    assert before.keys() == after.keys() and torch.equal(
        *(next(iter(one.values())) for one in (before, after))
    )
    base = load_theirs(tmp_path / "again", family)
    theirs = peft.PeftModel.from_pretrained(base, write(files, tmp_path / "ours")).eval()
    assert torch.equal(
        their_output(theirs, ids(), family == "t5"), their_output(tuned, ids(), family == "t5")
    )


def load_theirs(folder: Path, family: str) -> Any:
    return type(THEIRS[family]()).from_pretrained(folder)


# Files that are no good.


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    with_lora("llama", folder)
    return folder


def changed(good: Path, tmp_path: Path, **fields: Any) -> Path:
    """The good adapter with some fields of its configuration replaced."""
    folder = tmp_path / "changed"
    shutil.copytree(good / "adapter", folder)
    config = json.loads((folder / CONFIGURATION).read_text())
    (folder / CONFIGURATION).write_text(json.dumps(config | fields))
    return folder


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"use_dora": True}, "use_dora asks for something that this version does not do"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save asks"),
        ({"target_parameters": ["weight"]}, "target_parameters asks"),
        ({"a_new_field": {"on": True}}, "a_new_field asks"),
        ({"bias": "all"}, "bias: Input should be 'none'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"peft_type": "IA3"}, r"peft_type 'IA3' is not read \(LORA and PROMPT_TUNING are\)"),
        ({"peft_type": None}, "peft_type 'None' is not read"),
        ({"r": 0}, "r: Input should be greater"),
        ({"r": 5}, r"q_proj\.lora_A\.weight is \[4, 32\], and for this model and .* it is \[5, 32\]"),
        ({"rank_pattern": {}}, r"down_proj\.lora_A\.weight is \[3, 48\]"),
        ({"lora_alpha": -1}, "lora_alpha: Input should be greater"),
        ({"lora_alpha": "much"}, "lora_alpha: Input should be a valid number"),
        ({"rank_pattern": {"(a*)*b": 3}}, r"the pattern '\(a\*\)\*b' is too involved"),
        ({"rank_pattern": {".*" * 20: 3}}, "is too involved"),
        ({"alpha_pattern": {"[": 3}}, "is no pattern of module names"),
        ({"target_modules": ["q_proj", "k_proj"]}, r"has nothing for model\.layers\.0\.self_attn\.k_proj"),
    ],
)
def test_a_configuration_that_is_not_honoured_is_told(
    good: Path, tmp_path: Path, fields: dict[str, Any], told: str
) -> None:
    model = load_model(good / "base")
    with pytest.raises(UserError, match=told) as caught:
        load_adapter(model, changed(good, tmp_path, **fields))
    assert "\n" not in str(caught.value)
    assert lora_names(model) == ()


NAME = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop(f"{NAME}.lora_B.weight"), "q_proj has only one of A and B"),
        (
            lambda t: [t.pop(f"{NAME}.lora_{part}.weight") for part in "AB"],
            "has nothing for .*layers.0.*q_proj",
        ),
        (lambda t: t.clear(), "holds no adapter"),
        (
            lambda t: t.update({f"{NAME}.lora_magnitude_vector.weight": torch.ones(32)}),
            "is DoRA, which is not read",
        ),
        (
            lambda t: t.update({"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 60)}),
            "is LoRA on an embedding, which is not read",
        ),
        (lambda t: t.update({"x.lora_A.weight": torch.ones(4, 32)}), "is none of a LoRA's"),
        (lambda t: t.update({f"{NAME}.lora_A.weight": torch.ones(4, 31)}), r"is \[4, 31\]"),
        (lambda t: t.update({f"{NAME}.lora_B.weight": torch.ones(4)}), r"is \[4\]"),
        (
            lambda t: t.update({f"{NAME}.lora_A.weight": torch.ones(4, 32, dtype=torch.int32)}),
            "holds int32 numbers",
        ),
        (
            lambda t: t.update(
                {f"{NAME.replace('0', '9')}.lora_{part}.weight": torch.ones(4, 4) for part in "AB"}
            ),
            r"no matrix of this model is called model\.layers\.9",
        ),
        (
            lambda t: t.update(
                {f"{NAME.replace('model.model.', 'model.')}.lora_A.weight": torch.ones(4, 32)}
                | {f"{NAME.replace('model.model.', 'model.')}.lora_B.weight": torch.ones(32, 4)}
            ),
            r"there are two adapters for model\.layers\.0\.self_attn\.q_proj",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_told(good: Path, tmp_path: Path, change: Any, told: str) -> None:
    folder = changed(good, tmp_path)
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    model = load_model(good / "base")
    with pytest.raises(UserError, match=told) as caught:
        load_adapter(model, folder)
    assert "\n" not in str(caught.value)
    assert lora_names(model) == ()


def test_files_that_are_absent_or_damaged_are_told(good: Path, tmp_path: Path) -> None:
    model = load_model(good / "base")
    with pytest.raises(UserError, match="no such folder"):
        load_adapter(model, tmp_path / "ñandú")
    folder = changed(good, tmp_path)
    whole = (folder / WEIGHTS).read_bytes()
    for content in (b"", whole[:5], whole[: len(whole) // 2], whole[:-1], whole + b"x"):
        (folder / WEIGHTS).write_bytes(content)
        with pytest.raises(UserError, match=r"adapter_model\.safetensors: is damaged"):
            load_adapter(model, folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"no adapter here: adapter_model\.safetensors is missing"):
        load_adapter(model, folder)
    (folder / CONFIGURATION).write_text("{")
    with pytest.raises(UserError, match=r"adapter_config\.json: is not valid JSON"):
        load_adapter(model, folder)
    (folder / CONFIGURATION).unlink()
    with pytest.raises(UserError, match=r"adapter_config\.json: cannot be read"):
        load_adapter(model, folder)


def test_a_pickle_that_is_a_program_is_not_opened(good: Path, tmp_path: Path) -> None:
    class Program:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    folder = changed(good, tmp_path)
    (folder / WEIGHTS).unlink()
    torch.save({"x": Program()}, folder / "adapter_model.bin")
    with pytest.raises(UserError, match="is more than numbers"):
        load_adapter(load_model(good / "base"), folder)
    assert not (tmp_path / "ran").exists()


def test_an_adapter_for_another_model_is_told(good: Path) -> None:
    with pytest.raises(UserError, match="no matrix of this model is called"):
        load_adapter(tiny_model("gpt2"), good / "adapter")
    with pytest.raises(UserError, match=r"is \[32, 3\], and for this model .* \[16, 3\]"):
        load_adapter(tiny_model("llama", hidden_size=16), good / "adapter")
    tied = load_model(good / "base")
    with pytest.raises(UserError, match="no adapter 'default' to save"):
        save_adapter(tied)


def test_a_prompt_that_does_not_fit_is_told(tmp_path: Path) -> None:
    folder = write(save_adapter(add_prompt(tiny_model("llama"), PromptSettings())), tmp_path / "prompt")
    with pytest.raises(UserError, match=r"the prompt is \[20, 32\], and for this model .* \[20, 16\]"):
        load_adapter(tiny_model("llama", hidden_size=16), folder)
    config = json.loads((folder / CONFIGURATION).read_text())
    for fields, told in (
        ({"num_transformer_submodules": 2}, "num_transformer_submodules"),
        ({"num_virtual_tokens": 3}, r"the prompt is \[20, 32\]"),
        ({"num_virtual_tokens": 10**12}, "num_virtual_tokens"),
        ({"modules_to_save": ["head"]}, "modules_to_save asks"),
    ):
        (folder / CONFIGURATION).write_text(json.dumps(config | fields))
        with pytest.raises(UserError, match=told):
            load_adapter(tiny_model("llama"), folder)
    (folder / CONFIGURATION).write_text(json.dumps(config))
    save_file({"other": torch.ones(20, 32)}, folder / WEIGHTS)
    with pytest.raises(UserError, match="a prompt is one tensor, called prompt_embeddings"):
        load_adapter(tiny_model("llama"), folder)


def test_a_merged_adapter_is_saved_as_a_model_that_transformers_opens(good: Path, tmp_path: Path) -> None:
    from yunque.model.lora import merge_lora, remove_lora

    model = load_adapter(load_model(good / "base"), good / "adapter")
    scores = output(model, ids())
    merge_lora(model)
    remove_lora(model)
    folder = write(save_model(model), tmp_path / "merged")
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    assert_close(their_output(theirs, ids(), False), scores, rtol=1e-5, atol=1e-5)
