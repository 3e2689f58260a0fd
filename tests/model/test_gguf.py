"""GGUF: our reader against the package `gguf`, our writer against both readers and `transformers`."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from checkpoints import TEXTS, tensors_of, tiny_llama, write_gguf
from gguf.quants import dequantize, quantize

from yunque.errors import UserError
from yunque.model import new_model
from yunque.model.checkpoint import build_model, checkpoint_tensors, parse_configuration
from yunque.model.families.qwen import Qwen2Config, Qwen3Config
from yunque.model.formats.gguf import GgufFile
from yunque.model.formats.gguf_names import gguf_name, hugging_face_name
from yunque.model.formats.gguf_rope import factors_of, scaling_of_factors
from yunque.model.formats.gguf_tokenizer import read_tokenizer_values
from yunque.model.formats.gguf_writer import GgufExport
from yunque.model.formats.rotary_rows import pairs_from_halves
from yunque.model.positions import Rope
from yunque.tokenizer import Tokenizer, tokenizer_from_pieces

IDS = torch.arange(20)[None]
Kind = gguf.GGMLQuantizationType


def opened(path: Path) -> torch.nn.Module:
    file = GgufFile(path)
    return build_model(parse_configuration(file.config, str(path)), file)


def write_with_the_package(model: Any, path: Path, kind: Kind) -> Path:
    """A file as llama.cpp's own converter makes it, by the package's writer alone."""
    config = model.config
    heads, key_heads, head_dim = config.heads
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_dim)
    for name, tensor in tensors_of(model).items():
        if "q_proj" in name or "k_proj" in name:
            tensor = pairs_from_halves(tensor, heads if "q_proj" in name else key_heads)
        numbers, stored = tensor.numpy(), Kind.F32 if tensor.dim() == 1 else kind
        writer.add_tensor(gguf_name(name), quantize(numbers, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0])
def test_a_file_of_each_type_gives_the_numbers_of_the_package(kind: Kind, tmp_path: Path) -> None:
    model = tiny_llama()
    path = write_with_the_package(model, tmp_path / "m.gguf", kind)
    file, theirs = GgufFile(path), gguf.GGUFReader(path)
    assert file.entries["model.norm.weight"].dtype == file.entries["lm_head.weight"].dtype
    for stored in theirs.tensors:
        name = hugging_face_name(stored.name)
        assert name is not None
        wanted = torch.from_numpy(np.array(dequantize(stored.data, stored.tensor_type))).float()
        ours = file.read(name).float()
        for part, heads in (("q_proj", 4), ("k_proj", 2)):
            if part in name:
                ours = pairs_from_halves(ours, heads)
        assert torch.equal(ours, wanted.reshape(ours.shape)), name
    # Numbers of four bits are far from the model's, and those of 32 are them.
    wide = {Kind.F32: 0.0, Kind.F16: 2e-3, Kind.BF16: 2e-2, Kind.Q8_0: 2e-2, Kind.Q4_0: 0.4}[kind]
    assert (opened(path)(IDS).float() - model(IDS)).abs().max() <= wide
    if kind in (Kind.F16, Kind.BF16):
        # The norms of this model are not of 16 bits: the file's numbers are kept as float32, which holds them all.
        assert file.entries["model.norm.weight"].dtype == torch.float32


def test_a_file_of_16_bits_whose_norms_fit_stays_one(tmp_path: Path) -> None:
    model = tiny_llama()
    for weight in model.parameters():
        weight.copy_(weight.bfloat16().float())
    file = GgufFile(write_with_the_package(model, tmp_path / "m.gguf", Kind.BF16))
    assert {entry.dtype for entry in file.entries.values()} == {torch.bfloat16}
    assert file.config["torch_dtype"] == "bfloat16"
    assert all(torch.equal(file.read(name).float(), tensor) for name, tensor in tensors_of(model).items())


@pytest.mark.parametrize("tied", [True, False])
def test_an_exported_model_is_what_its_int8_numbers_say(tied: bool, tmp_path: Path) -> None:
    model = tiny_llama(tie_word_embeddings=tied)
    path = write_gguf(model, tmp_path / "m.gguf")
    reader = gguf.GGUFReader(path)
    kinds = {stored.name: stored.tensor_type for stored in reader.tensors}
    assert kinds["blk.0.attn_q.weight"] == Kind.Q8_0 and kinds["output_norm.weight"] == Kind.F32
    assert ("output.weight" in kinds) is not tied
    assert reader.get_field("llama.attention.head_count_kv").contents() == 2
    ours = opened(path)
    rounded = tiny_llama(tie_word_embeddings=tied)
    for weight in rounded.parameters():
        if weight.dim() == 2:
            weight.copy_(torch.from_numpy(dequantize(quantize(weight.numpy(), Kind.Q8_0), Kind.Q8_0)))
    torch.testing.assert_close(ours(IDS), rounded(IDS))
    # Negative control: it is not the float model.
    with pytest.raises(AssertionError):
        torch.testing.assert_close(ours(IDS), model(IDS))


def test_transformers_reads_an_exported_file_as_we_do(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    tokenizer = Tokenizer.train(TEXTS * 3, vocab_size=300)
    model = tiny_llama(vocab_size=tokenizer.vocab_size)
    path = write_gguf(model, tmp_path / "m.gguf", tokenizer)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(opened(path)(IDS), theirs(IDS).logits)
        # Negative control: two layers in another order.
        layers = theirs.model.layers
        layers[0].mlp, layers[1].mlp = layers[1].mlp, layers[0].mlp
        with pytest.raises(AssertionError):
            torch.testing.assert_close(opened(path)(IDS), theirs(IDS).logits)


@pytest.mark.parametrize(("config", "bias"), [(Qwen2Config, True), (Qwen3Config, False)])
def test_qwen_goes_out_and_comes_back(config: type[Qwen2Config], bias: bool, tmp_path: Path) -> None:
    fields = {"num_key_value_heads": 2, "head_dim": 16, "max_window_layers": 2, "rope_theta": 1e6}
    sizes = tiny_llama().config.model_dump(exclude={"model_type", "architectures", *fields})
    built = config.model_validate({**sizes, **fields, "model_type": "qwen2" if bias else "qwen3"})
    model = new_model(built, torch.Generator().manual_seed(0)).eval().requires_grad_(False)
    tensors = checkpoint_tensors(model)
    assert any(name.endswith("q_proj.bias") for name in tensors) is bias
    from checkpoints import entries_of

    export = GgufExport(model.config, entries_of(tensors), tensors.__getitem__, "tiny")
    export.write(tmp_path / "m.gguf", "tiny", None)
    file = GgufFile(tmp_path / "m.gguf")
    assert file.config["model_type"] == built.model_type and file.config["rope_theta"] == 1e6
    for name, tensor in tensors.items():
        assert (file.read(name) - tensor).abs().max() <= tensor.abs().max() / 127, name
    assert (opened(tmp_path / "m.gguf")(IDS) - model(IDS)).abs().max() < 0.05


@pytest.mark.parametrize(
    "scaling",
    [
        {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        {
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        {
            "factor": 4.0,
            "low_freq_factor": 2.0,
            "high_freq_factor": 9.0,
            "original_max_position_embeddings": 1024,
        },
    ],
)
def test_the_scaling_of_llama_3_is_found_in_its_table(scaling: dict[str, Any]) -> None:
    rope = Rope(rope_type="llama3", rope_theta=500000.0, **scaling)
    factors = factors_of(rope, 128)
    assert factors[0] == 1 and factors[-1] == pytest.approx(scaling["factor"])
    found = scaling_of_factors(factors, 500000.0)
    assert found is not None
    again = factors_of(Rope(rope_theta=500000.0, **found), 128)
    np.testing.assert_allclose(again, factors, rtol=1e-5)
    if scaling["original_max_position_embeddings"] == 8192:
        assert {**scaling, "rope_type": "llama3"} == found
    # Negative control: another table has no such scaling.
    assert scaling_of_factors(np.linspace(1, 8, 64, dtype=np.float32), 500000.0) is None


def test_scaled_positions_go_out_and_come_back(tmp_path: Path) -> None:
    llama3 = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    for scaling in (llama3, {"rope_type": "linear", "factor": 2.0}):
        model = tiny_llama(rope_scaling=scaling, rope_theta=500000.0, head_dim=64)
        file = GgufFile(write_gguf(model, tmp_path / "m.gguf"))
        assert file.config["rope_scaling"] == scaling and file.config["rope_theta"] == 500000.0
    with pytest.raises(UserError, match="'dynamic' cannot be exported"):
        write_gguf(tiny_llama(rope_scaling={"rope_type": "dynamic", "factor": 2.0}), tmp_path / "m.gguf")


AWKWARD = [
    "",
    "La niña comió 25 pingüinos… ¿sí?",
    "  two  spaces\n\ttabs",
    "1234 años",
    "😀 fin",
    "It's O'Neil's <|end|>",
]


def test_a_byte_level_tokenizer_goes_out_and_comes_back(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(TEXTS * 3, vocab_size=300)
    model = tiny_llama(vocab_size=tokenizer.vocab_size + 4)
    values = GgufFile(write_gguf(model, tmp_path / "m.gguf", tokenizer)).values
    assert (
        values["tokenizer.ggml.pre"] == "gpt-2"
        and len(values["tokenizer.ggml.tokens"]) == model.config.vocab_size
    )
    read = read_tokenizer_values(values, "m.gguf")
    assert read is not None
    for text in AWKWARD:
        assert read.encode(text) == tokenizer.encode(text), text
        assert read.decode(read.encode(text)) == text
    assert read.end_id == tokenizer.end_id and read.pad_id == tokenizer.pad_id


def test_a_tokenizer_of_pieces_goes_out_and_comes_back(tmp_path: Path) -> None:
    letters = "▁aenoslmtdL23kg"
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    words = ["▁m", "al", "▁mal", "et", "eta", "▁maleta", "▁L", "▁La", "an", "en"]
    pieces += [(word, -float(rank), 1) for rank, word in enumerate(words)]
    pieces += [(letter, -float(len(words) + rank), 1) for rank, letter in enumerate(letters)]
    tokenizer = tokenizer_from_pieces(pieces, "bpe", bos_id=1, eos_id=2, add_bos=True)
    values = GgufFile(write_gguf(tiny_llama(vocab_size=len(pieces)), tmp_path / "m.gguf", tokenizer)).values
    assert values["tokenizer.ggml.model"] == "llama"
    read = read_tokenizer_values(values, "m.gguf")
    assert read is not None
    for text in (*AWKWARD, "La maleta", "maletas  en La Maleta"):
        assert read.encode_prompt(text) == tokenizer.encode_prompt(text), text
    assert len(tokenizer.encode("maleta")) == 1


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"model": "bert"}, "kind 'bert'"),
        ({"pre": "martian"}, "'martian'"),
        ({"merges": ["a"]}, "not two tokens"),
        ({"merges": 7}, "no merges"),
        ({"tokens": ["a", "a"], "token_type": np.array([1, 1])}, "twice"),
        ({"token_type": np.array([1])}, "do not go together"),
        ({"token_type": np.array([9, 9, 9])}, "not known"),
        ({"bos_token_id": 99}, "no token of it"),
    ],
)
def test_a_tokenizer_that_cannot_be_is_told(values: dict[str, Any], match: str) -> None:
    good = {"model": "gpt2", "tokens": ["a", "b", "ab"], "merges": ["a b"], "token_type": np.array([1, 1, 1])}
    header = {f"tokenizer.ggml.{name}": value for name, value in {**good, **values}.items()}
    with pytest.raises(UserError, match=match):
        read_tokenizer_values(header, "m.gguf")


def test_other_architectures_and_types_are_told(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match="architecture 'mamba'; those that can be read are llama"):
        GgufFile(path)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("token_embd.weight", np.zeros((4, 210), np.uint8), raw_dtype=Kind.Q6_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match="of type Q6_K; those that can be read are F32"):
        GgufFile(path)


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tiny_llama(), tmp_path / "m.gguf")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(UserError, match=r"pip install 'yunque\[gguf\]'"):
        GgufFile(path)


def test_the_chat_template_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_chat_template("{{ messages }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    from yunque.model.formats.gguf_header import read_header

    values = dict(read_header(path).values)
    alphabet = json.loads(Tokenizer.train(TEXTS, vocab_size=270).to_json())["model"]["vocab"]
    tokens = sorted(alphabet, key=alphabet.__getitem__)
    values |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": []}
    read = read_tokenizer_values(values, "m.gguf")
    assert read is not None and read.chat_template == "{{ messages }}"
    assert read.to_files()["chat_template.jinja"] == b"{{ messages }}"
