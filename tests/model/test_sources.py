"""Tensors of safetensors and of PyTorch's .bin: known before they are read, and read bit for bit."""

import json
from pathlib import Path

import pytest
import torch
from checkpoints import entries_of
from safetensors.torch import load_file, save_file

from yunque.errors import UserError
from yunque.model.formats.safetensors_writer import write_safetensors
from yunque.model.sources import open_source, weight_files


def tensors() -> dict[str, torch.Tensor]:
    """One tensor of each type, and odd shapes."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(5, 7, generator=generator) * 100
    kinds = (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int8,
        torch.uint8,
    )
    made = {str(kind): numbers.to(kind) for kind in kinds}
    made["bool"] = numbers > 0
    made |= {
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "one": torch.ones(1, 1, 1, dtype=torch.int32),
    }
    return made


def check(folder: Path, wanted: dict[str, torch.Tensor]) -> None:
    source = open_source(folder)
    assert set(source.entries) == set(wanted)
    for name, tensor in wanted.items():
        entry = source.entries[name]
        assert (entry.shape, entry.dtype) == (tuple(tensor.shape), tensor.dtype)
        read = source.read(name)
        assert read.dtype == tensor.dtype and torch.equal(read, tensor) and read.is_contiguous()
    assert sum(entry.bytes for entry in source.entries.values()) == sum(t.nbytes for t in wanted.values())


def test_every_type_of_safetensors_is_read(tmp_path: Path) -> None:
    eight_bits = {
        "e4m3": torch.randn(3, 4).to(torch.float8_e4m3fn),
        "e5m2": torch.randn(3, 4).to(torch.float8_e5m2),
    }
    save_file({**tensors(), **eight_bits}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    source = open_source(tmp_path)
    for name, tensor in eight_bits.items():
        assert torch.equal(source.read(name).view(torch.uint8), tensor.view(torch.uint8))
    save_file(tensors(), tmp_path / "model.safetensors")
    check(tmp_path, tensors())


@pytest.mark.parametrize("zipped", [True, False])
def test_every_type_of_a_pytorch_file_is_read(zipped: bool, tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    check(tmp_path, tensors())


@pytest.mark.parametrize("zipped", [True, False])
def test_views_shared_and_turned_tensors_are_read(zipped: bool, tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    made = {
        "base": base,
        "tied": base,
        "turned": base.t(),
        "cut": base[1:3, 2:4],
        "parameter": torch.nn.Parameter(base[0]),
        "steps": base.flatten()[::5],
    }
    torch.save(made, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    check(tmp_path, {name: tensor.detach() for name, tensor in made.items()})


def test_the_state_of_a_module_is_read(tmp_path: Path) -> None:
    state = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).state_dict()
    torch.save(state, tmp_path / "pytorch_model.bin")
    check(tmp_path, dict(state))


def test_what_is_not_a_table_of_tensors_is_told(tmp_path: Path) -> None:
    for content, match in (
        ({"a": 3}, "'a' is not a tensor"),
        ([torch.ones(1)], "holds a list"),
        ({"model": {"a": torch.ones(1)}}, "'model' is not a tensor"),
        ({"a": torch.ones(1).expand(9)}, "does not fit in its storage"),
        ({"a": bytearray(9)}, "more than numbers"),
        ({"a": torch.device("cpu")}, "more than numbers"),
        (torch.nn.Linear(1, 1), "more than numbers"),
    ):
        torch.save(content, tmp_path / "pytorch_model.bin")
        with pytest.raises(UserError, match=match):
            open_source(tmp_path)


@pytest.mark.parametrize("most", [None, 1, 100, 10**6])
def test_what_is_written_is_read_by_the_library_of_the_format(most: int | None, tmp_path: Path) -> None:
    made = tensors()
    names = write_safetensors(tmp_path, entries_of(made), made.__getitem__, most)
    check(tmp_path, made)
    shards = [name for name in names if name.endswith(".safetensors")]
    theirs = {name: tensor for shard in shards for name, tensor in load_file(tmp_path / shard).items()}
    assert set(theirs) == set(made) and all(torch.equal(theirs[name], made[name]) for name in made)
    if most == 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in made.values())
        assert weight_files(tmp_path) == ["model.safetensors.index.json", *sorted(shards)]
    # Negative control: one bit in the file is seen.
    broken = tmp_path / next(shard for shard in shards if "torch.float64" in load_file(tmp_path / shard))
    content = bytearray(broken.read_bytes())
    content[8 + int.from_bytes(content[:8], "little")] ^= 1
    broken.write_bytes(content)
    with pytest.raises(AssertionError):
        check(tmp_path, made)


def test_shards_of_pytorch_files_are_read(tmp_path: Path) -> None:
    made = tensors()
    first, second = dict(list(made.items())[:4]), dict(list(made.items())[4:])
    torch.save(first, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save(second, tmp_path / "pytorch_model-00002-of-00002.bin")
    files = dict.fromkeys(first, "pytorch_model-00001-of-00002.bin")
    files |= dict.fromkeys(second, "pytorch_model-00002-of-00002.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    check(tmp_path, made)


def test_safetensors_go_before_a_pickle(tmp_path: Path) -> None:
    torch.save({"old": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    save_file({"new": torch.ones(1)}, tmp_path / "model.safetensors")
    assert list(open_source(tmp_path).entries) == ["new"]


def test_a_folder_without_weights_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no weights here: a model has one of model\.safetensors"):
        open_source(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        open_source(tmp_path / "nothing")
