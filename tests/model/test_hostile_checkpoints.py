"""A damaged or hostile checkpoint is refused in one sentence, at once, before memory is taken."""

import json
import os
import pickle
import random
import resource
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import FORMATS, tiny_llama, write_checkpoint, write_folder
from safetensors.torch import load_file, save_file

from yunque.errors import UserError
from yunque.model import load_model
from yunque.model.checkpoint import build_model
from yunque.model.opening import open_checkpoint
from yunque.model.sources import open_source

_SECONDS = 2.0


def opened(path: Path) -> torch.nn.Module:
    checkpoint = open_checkpoint(path)
    return build_model(checkpoint.configuration, checkpoint.source)


def refused(path: Path, match: str) -> None:
    started = time.process_time()
    with pytest.raises(UserError, match=match) as caught:
        opened(path)
    assert time.process_time() - started < _SECONDS
    said = str(caught.value)
    assert "\n" not in said and len(said) < 700


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_good_one_of_each_format_opens(kind: str, tmp_path: Path) -> None:
    ids = torch.arange(12)[None]
    ours = opened(write_checkpoint(tmp_path / "model", kind))(ids)
    wanted = tiny_llama()(ids)
    if kind == "gguf":
        assert (ours - wanted).abs().max() < 0.02 and not torch.equal(ours, wanted)
    else:
        assert torch.equal(ours, wanted)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("part", range(4))
def test_any_mutation_loads_or_is_told(kind: str, part: int, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "model", kind)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    good = {file: file.read_bytes() for file in files}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = 0
    for seed in range(part * 50, part * 50 + 50):
        chance = random.Random(f"{kind}{seed}")
        file = chance.choice(files)
        mutated = mutate(good[file], chance, file.suffix == ".json")
        file.write_bytes(mutated)
        started = time.process_time()
        try:
            model = opened(path)
            assert all(weight.numel() < 10**7 for weight in model.parameters())
        except UserError as error:
            told += 1
            assert len(str(error)) < 900
        assert time.process_time() - started < 5 * _SECONDS, seed
        file.write_bytes(good[file])
    assert told > 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000


def mutate(content: bytes, chance: random.Random, is_json: bool) -> bytes:
    """One damage, as disks, networks, editors and attackers do it."""
    kind = chance.choice(("flip", "byte", "cut", "grow", "number", "huge"))
    if is_json and kind in ("number", "huge"):
        return mutate_json(content, chance, kind == "huge")
    # Most of what can go wrong is in the header, or in the list at the end of a zip archive.
    reach = chance.choice((64, 1024, len(content)))
    place = chance.randrange(min(reach, len(content)))
    if chance.random() < 0.2:
        place = len(content) - 1 - place
    data = bytearray(content)
    if kind == "flip":
        data[place] ^= 1 << chance.randrange(8)
    elif kind == "byte":
        data[place] = chance.randrange(256)
    elif kind == "cut":
        del data[place:]
    elif kind == "grow":
        data[place:place] = chance.randbytes(chance.choice((1, 8, 100)))
    elif kind == "number":
        data[place : place + 4] = struct.pack("<i", chance.randrange(-(2**31), 2**31))
    else:
        data[place : place + 8] = struct.pack("<Q", chance.choice((2**63, 2**64 - 1, 2**40, 10**12)))
    return bytes(data)


def mutate_json(content: bytes, chance: random.Random, huge: bool) -> bytes:
    values = json.loads(content)
    group = (
        values
        if chance.random() < 0.8
        else chance.choice([v for v in values.values() if isinstance(v, dict)] or [values])
    )
    name = chance.choice(sorted(group))
    strange = (
        (10**9, 10**12, 2**63, -1, 0) if huge else (None, "x", [], {}, 1.5, True, 7, 1e300, "../x", [[1]])
    )
    if chance.random() < 0.15:
        del group[name]
    else:
        group[name] = chance.choice(strange)
    return json.dumps(values).encode()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"hidden_size": 10**6, "num_hidden_layers": 10**9}, "layers"),
        ({"num_hidden_layers": 10**9}, "layers"),
        ({"hidden_size": 10**6, "num_attention_heads": 1000}, "by config.json"),
        ({"vocab_size": 10**12}, "vocab_size"),
        ({"hidden_size": 2**31 - 1, "vocab_size": 2**31 - 1}, "beyond|by config.json|multiple"),
        ({"num_hidden_layers": 3}, "missing"),
        ({"num_hidden_layers": 1}, "not part of it"),
        ({"vocab_size": 95}, "embed_tokens"),
        ({"model_type": "gpt2"}, "config.json|gpt2"),
        ({"model_type": "wizard"}, "'wizard' is not known"),
        ({"model_type": None}, "model_type"),
        ({"tie_word_embeddings": True}, "the two differ"),
        ({"num_attention_heads": 5}, "multiple"),
        ({"rms_norm_eps": -1}, "rms_norm_eps"),
    ],
)
def test_a_config_that_is_not_the_weights_is_told(
    changes: dict[str, Any], match: str, tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path / "model", "safetensors")
    change_config(folder, **changes)
    refused(folder, match)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"[]", "must hold a JSON object"),
        (b"", "not valid JSON"),
        (b'{"model_type": "llama", "model_type": "gpt2"}', "given twice"),
        (b'{"model_type": "llama", "rms_norm_eps": NaN}', "NaN"),
        (b'{"rms_norm_eps": 1e999}', "1e999"),
        (b"[" * 200_000, "nested far too deep"),
        (b'{"a":' * 200_000, "nested far too deep"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b'{"vocab_size": ' + b"9" * 100_000 + b"}", "not valid JSON"),
    ],
)
def test_a_config_that_is_no_configuration_is_told(content: bytes, match: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "safetensors")
    (folder / "config.json").write_bytes(content)
    refused(folder, match)


@pytest.mark.parametrize(
    "shard",
    [
        "../outside.safetensors",
        "/etc/passwd.safetensors",
        "a/b.safetensors",
        "..",
        "",
        "x.py",
        "a\0.safetensors",
        7,
    ],
)
def test_an_index_that_leads_out_of_the_folder_is_told(shard: Any, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "sharded")
    (tmp_path / "outside.safetensors").write_bytes(shards(folder)[0].read_bytes())
    index = folder / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"]["lm_head.weight"] = shard
    index.write_text(json.dumps(values))
    refused(folder, "plain file name|weight_map gives")


def test_a_link_that_leads_out_of_the_folder_is_told(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "safetensors")
    (folder / "model.safetensors").rename(tmp_path / "secret")
    (folder / "model.safetensors").symlink_to(tmp_path / "secret")
    refused(folder, "leads out of the folder")
    # A link inside of the folder leads nowhere else.
    (folder / "model.safetensors").unlink()
    (tmp_path / "secret").rename(folder / "weights")
    (folder / "model.safetensors").symlink_to("weights")
    opened(folder)


def test_the_cache_of_the_hub_links_to_its_own_blobs(tmp_path: Path) -> None:
    made = write_checkpoint(tmp_path / "made", "safetensors")
    snapshot = tmp_path / "models--org--tiny" / "snapshots" / "abc"
    blobs = snapshot.parent.parent / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in made.iterdir():
        file.rename(blobs / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    opened(snapshot)


def test_a_folder_below_that_leads_out_is_told(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "safetensors")
    (folder / "modules.json").write_text('[{"path": "1_Pooling"}]')
    outside = tmp_path / "secrets"
    outside.mkdir()
    (outside / "config.json").write_text("{}")
    (folder / "1_Pooling").symlink_to(outside)
    refused(folder, "leads out of the folder")
    (folder / "1_Pooling").unlink()
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").symlink_to(outside / "config.json")
    refused(folder, "leads out of the folder")
    (folder / "1_Pooling" / "config.json").unlink()
    os.mkfifo(folder / "1_Pooling" / "config.json")
    refused(folder, "not an ordinary file")


def test_a_tensor_in_two_shards_or_in_none_is_told(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "sharded")
    index = folder / "model.safetensors.index.json"
    good = index.read_text()
    values = json.loads(good)
    values["weight_map"]["model.norm.weight"] = shards(folder)[0].name
    index.write_text(json.dumps(values))
    refused(folder, "not in model-00001")
    index.write_text(good)
    shard = shards(folder)[1]
    save_file({**load_file(shard), "lm_head.weight": torch.zeros(96, 32)}, shard)
    refused(folder, "too")
    shard.unlink()
    refused(folder, "model-00002-of-.*: cannot be read")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_cut_off_or_empty_file_is_told(kind: str, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "model", kind)
    weights = max(path.iterdir(), key=lambda file: file.stat().st_size) if path.is_dir() else path
    content = weights.read_bytes()
    for size in (len(content) - 1, len(content) // 2, 40, 3, 0):
        weights.write_bytes(content[:size])
        refused(path, "damaged|cut off|no GGUF|no llama2.c|no checkpoint|cannot be read")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_what_is_no_file_is_told(name: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "safetensors")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refused(folder, "not an ordinary file")
    (folder / name).unlink()
    (folder / name).mkdir()
    refused(folder, "is a folder")


class Bomb:
    """What runs a program when it is unpickled freely."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_bomb_does_not_go_off(zipped: bool, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "bin")
    file, mark = folder / "pytorch_model.bin", tmp_path / "exploded"
    tensors = torch.load(file, weights_only=True)
    for content in ({**tensors, "lm_head.weight": Bomb(mark)}, Bomb(mark), {"a": pickle.Unpickler}):
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
        refused(folder, "is more than numbers")
    file.write_bytes(pickle.dumps(Bomb(mark)))
    refused(folder, "more than numbers|no checkpoint")
    assert not mark.exists()
    # Negative control: freely unpickled, it does.
    with pytest.raises(Exception):  # noqa: B017
        torch.load(file, weights_only=False)
    pickle.loads(file.read_bytes())
    assert mark.exists()


def test_a_zip_bomb_is_told(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "bin")
    file = folder / "pytorch_model.bin"
    with zipfile.ZipFile(file) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, b"\0" * 200_000_000 if name.endswith("data.pkl") else content)
    assert file.stat().st_size < 1_000_000
    refused(folder, "compressed")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("count", [1_500_000, 60_000_000])
def test_a_pickle_of_too_many_steps_is_told(zipped: bool, count: int, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "bin")
    file = folder / "pytorch_model.bin"
    steps = b"\x80\x02" + b"}" * count + b"."
    if zipped:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", steps)
    else:
        start = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
        file.write_bytes(b"".join(pickle.dumps(value, protocol=2) for value in start) + steps)
    refused(folder, "more than 1,000,000 steps|far too large")
    file.write_bytes(steps)
    refused(folder, "more than 1,000 steps")


def test_keys_of_storages_that_hold_one_another_are_told(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "legacy")
    twice: list[Any] = []
    for _ in range(60):
        twice = [twice, twice]
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, twice)
    content = b"".join(pickle.dumps(value, protocol=2) for value in parts)
    (folder / "pytorch_model.bin").write_bytes(content)
    refused(folder, "its storages have no names")


def _header(shape: list[int], size: int) -> bytes:
    fields = {"model.norm.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}
    text = json.dumps(fields).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (_header([10**6, 10**6], 4 * 10**12), "tensors take"),
        (_header([10**6, 10**6], 4), "bytes by its shape"),
        (_header([2**40, 2**40], 4) + b"\0" * 4, "bytes by its shape"),
        (_header([-1], 4) + b"\0" * 4, "shape"),
        (_header([1], 4) + b"\0" * 8, "tensors take"),
        ((2**60).to_bytes(8, "little") + b"{}", "header does not fit"),
        ((99_999_999).to_bytes(8, "little") + b"{}", "header does not fit"),
        ((2).to_bytes(8, "little") + b"[]", "JSON object"),
        (b"PK\x03\x04", "header does not fit"),
    ],
)
def test_a_header_that_cannot_be_is_told(content: bytes, match: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "safetensors")
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, match)


def test_tensors_over_one_another_or_with_a_gap_are_told(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "safetensors")
    for second in ([0, 4], [8, 12]):
        fields = {
            "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            "b": {"dtype": "F32", "shape": [1], "data_offsets": second},
        }
        text = json.dumps(fields).encode()
        (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * second[1])
        refused(folder, "over others, or leave a gap")


def _claims_of_gguf() -> list[bytes]:
    """Headers that claim more than there is: tensors, values, texts, lists, dimensions, sizes."""
    text = lambda value: struct.pack("<Q", len(value)) + value  # noqa: E731
    head = lambda tensors, values: b"GGUF" + struct.pack("<IQQ", 3, tensors, values)  # noqa: E731
    arch = text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")
    tensor = lambda dims, type, offset: (  # noqa: E731
        text(b"token_embd.weight") + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
        + struct.pack("<IQ", type, offset)
    )  # fmt: skip
    big_list = text(b"l") + struct.pack("<IIQ", 9, 4, 10**12)
    return [
        head(2**63, 1) + arch,
        head(0, 2**63) + arch,
        head(0, 1) + struct.pack("<Q", 10**12),
        head(0, 1) + big_list,
        head(0, 1) + text(b"l") + struct.pack("<IIQ", 9, 8, 10**12),
        head(0, 1) + text(b"l") + struct.pack("<IIQ", 9, 9, 10**6) * 1000,
        head(1, 1) + arch + tensor([10**6, 10**6], 0, 0),
        head(1, 1) + arch + tensor([2**62, 2**62], 0, 0),
        head(1, 1) + arch + tensor([32, 4], 8, 10**15),
        head(1, 1) + arch + tensor([33, 4], 8, 0),
        head(1, 1) + arch + tensor([1] * 100, 0, 0),
        head(1, 1) + arch + tensor([4], 99, 0),
    ]


@pytest.mark.parametrize("number", range(12))
def test_a_gguf_header_that_claims_too_much_is_told(number: int, tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    path.write_bytes(_claims_of_gguf()[number] + b"\0" * 64)
    refused(path, "damaged|of type 99")


def test_a_llama2c_header_that_claims_too_much_is_told(tmp_path: Path) -> None:
    path = tmp_path / "big.bin"
    for sizes in (
        (10**6, 10**6, 10**4, 8, 8, 10**6, 10**6),
        (64, 64, 10**9, 8, 8, 64, 64),
        (0,) * 7,
        (-1,) * 7,
    ):
        path.write_bytes(struct.pack("<7i", *sizes) + b"\0" * 64)
        refused(path, "llama2.c checkpoint")


_IN_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
sys.path.insert(0, "tests/model")
from test_hostile_checkpoints import opened
from yunque.errors import UserError
opened(Path(sys.argv[1]))
held = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (held + (256 << 20),) * 2)
for path in sys.argv[2:]:
    try:
        opened(Path(path))
        print("opened", path)
    except UserError as error:
        print("told", error)
"""


@pytest.mark.slow
def test_what_claims_a_trillion_numbers_is_told_in_little_memory(tmp_path: Path) -> None:
    good = write_checkpoint(tmp_path / "good", "safetensors")
    paths: list[Path] = []

    def add(name: str, change: Callable[[Path], None], kind: str = "safetensors") -> None:
        folder = write_folder(tiny_llama(), tmp_path / name, kind)
        change(folder)
        paths.append(folder)

    add("config", lambda folder: change_config(folder, hidden_size=10**6, num_hidden_layers=10**9))
    add("vocabulary", lambda folder: change_config(folder, vocab_size=2**31 - 1, hidden_size=2**20))

    def sparse(folder: Path) -> None:
        # The bytes are all there, as a hole that takes no disk: the header is true to the file.
        with (folder / "model.safetensors").open("wb") as file:
            head = _header([10**6, 10**5], 4 * 10**11)
            file.write(head)
            file.truncate(len(head) + 4 * 10**11)

    add("sparse", sparse)
    add(
        "storage",
        lambda folder: torch.save({"a": torch.ones(1).expand(10**6, 10**6)}, folder / "pytorch_model.bin"),
        "bin",
    )
    for number, content in enumerate(_claims_of_gguf()):
        paths.append(tmp_path / f"{number}.gguf")
        paths[-1].write_bytes(content + b"\0" * 64)
    command = [sys.executable, "-c", _IN_LITTLE_MEMORY, str(good), *map(str, paths)]
    root = Path(__file__).parents[2]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert ran.stdout.count("told ") == len(paths), ran.stdout + ran.stderr


def test_models_by_name_are_checked_as_folders_are(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "safetensors")
    files = {path.name: path for path in folder.iterdir()}
    assert set(open_source(files).entries) == set(open_source(folder).entries)
    with pytest.raises(UserError, match="no file"):
        load_model({"model.safetensors": files["model.safetensors"]})
