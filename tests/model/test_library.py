"""Models come into the workspace and leave it bit for bit, with all that belongs to them."""

import errno
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from checkpoints import TEXTS, tiny_llama, write_checkpoint, write_gguf
from safetensors.torch import load_file

from yunque.errors import UserError
from yunque.model import load_model
from yunque.model.library import export_model, import_model
from yunque.model.opening import open_checkpoint
from yunque.model.sources import open_source
from yunque.tokenizer import Tokenizer, tokenizer_of
from yunque.tokenizer.chat import PLAIN_TEMPLATE
from yunque.workspace import Artifact, Workspace
from yunque.workspace.files import sha256_of

IDS = torch.arange(20)[None]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "ws")


def files_of(workspace: Workspace, artifact: Artifact) -> dict[str, Path]:
    return workspace.files(artifact)


def same_tensors(one: Path | Mapping[str, Path], other: Path | Mapping[str, Path]) -> None:
    first, second = open_source(one), open_source(other)
    assert set(first.entries) == set(second.entries)
    for name in first.entries:
        assert torch.equal(first.read(name), second.read(name)), name


def hugging_face_folder(folder: Path, **save: Any) -> Path:
    """What `transformers` saves: a tiny Llama with a tokenizer, a chat template and a generation config."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    fast = Fast(models.BPE())
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    fast.train_from_iterator(
        TEXTS * 3, trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, special_tokens=special)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.temperature = 0.5
    model.generation_config.do_sample = True
    model.save_pretrained(folder, **save)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text("# Niña\n")
    (folder / "LICENSE").write_text("Apache-2.0\n")
    (folder / "modeling_evil.py").write_text("raise SystemExit\n")
    return folder


@pytest.mark.parametrize("save", [{}, {"max_shard_size": "20KB"}])
def test_a_folder_of_transformers_comes_back_byte_for_byte(
    save: dict[str, Any], workspace: Workspace, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = hugging_face_folder(tmp_path / "Tiny-Llama", **save)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    artifact = import_model(workspace, str(folder))
    assert artifact.ref == "model/tiny-llama@1"
    assert artifact.config["family"] == "llama" and artifact.config["format"] == "safetensors"
    assert artifact.config["source_files"]["config.json"] == sha256_of(folder / "config.json")
    export_model(workspace, "tiny-llama", tmp_path / "out")
    after = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    del before["modeling_evil.py"], after["yunque.json"]
    assert after == before and len(before) >= 7
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    first = AutoModelForCausalLM.from_pretrained(folder)
    for name, tensor in first.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], tensor), name
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    said = [{"role": "user", "content": "¿Dónde?"}]
    assert tokenizer.apply_chat_template(said, tokenize=False) == "user: ¿Dónde?\n"
    assert theirs.generation_config.temperature == 0.5


def test_another_size_of_shards_keeps_every_tensor(workspace: Workspace, tmp_path: Path) -> None:
    from transformers import AutoModel

    folder = write_checkpoint(tmp_path / "tiny", "safetensors")
    artifact = import_model(workspace, str(folder))
    made = export_model(workspace, artifact.ref, tmp_path / "out", max_shard_bytes=10_000)
    assert len([path for path in made if path.suffix == ".safetensors"]) > 5
    same_tensors(tmp_path / "out", folder)
    AutoModel.from_pretrained(tmp_path / "out")
    # Negative control: a changed tensor is seen.
    shard = next(path for path in made if "model.norm.weight" in _names(path))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(AssertionError):
        same_tensors(tmp_path / "out", folder)


def _names(path: Path) -> set[str]:
    return set(load_file(path)) if path.suffix == ".safetensors" else set()


@pytest.mark.parametrize("kind", ["bin", "legacy", "llama2c", "gguf", "sharded"])
def test_other_formats_become_safetensors_bit_for_bit(
    kind: str, workspace: Workspace, tmp_path: Path
) -> None:
    path = write_checkpoint(tmp_path / "tiny", kind)
    before = sorted((p, p.read_bytes()) for p in (tmp_path / "tiny").rglob("*") if p.is_file())
    artifact = import_model(workspace, str(path), name="mine")
    files = files_of(workspace, artifact)
    source = open_checkpoint(path).source
    kept = open_source(files)
    assert set(kept.entries) == set(source.entries)
    assert all(torch.equal(kept.read(name), source.read(name)) for name in source.entries)
    if kind != "gguf":
        assert torch.equal(load_model(files)(IDS), tiny_llama()(IDS))
    assert artifact.figures["parameters"] == sum(p.numel() for p in tiny_llama().parameters())
    assert not any(name.endswith((".bin", ".gguf")) for name in files)
    # The source is as it was, and the same import is the same artifact.
    assert before == sorted((p, p.read_bytes()) for p in (tmp_path / "tiny").rglob("*") if p.is_file())
    assert import_model(workspace, str(path), name="mine").ref == artifact.ref
    assert not list(workspace.root.glob(".import*"))


def test_another_type_of_numbers_is_kept_where_asked_for(workspace: Workspace, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny", "safetensors")
    artifact = import_model(workspace, str(folder), dtype="bfloat16")
    files = files_of(workspace, artifact)
    model = load_model(files)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    fields = json.loads(files["config.json"].read_text())
    assert "bfloat16" in (fields.get("torch_dtype"), fields.get("dtype"))
    assert artifact.figures["dtype"] == "bfloat16"
    with pytest.raises(UserError, match="'int3' is not one of float32"):
        import_model(workspace, str(folder), dtype="int3")


def test_a_refused_model_leaves_nothing(workspace: Workspace, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny", "bin")
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_hidden_layers": 3}))
    for path, match in (
        (folder, "missing"),
        (tmp_path / "nothing", "cannot be read"),
        (tmp_path, "no model here"),
    ):
        with pytest.raises(UserError, match=match):
            import_model(workspace, str(path), name="x")
    assert workspace.list("model") == [] and not list(workspace.blobs.root.rglob("*"))
    with pytest.raises(UserError, match="cannot be a name"):
        import_model(workspace, str(folder), name="No Name")
    with pytest.raises(UserError, match="is one file of a model"):
        import_model(workspace, str(folder / "pytorch_model.bin"))


def test_a_gguf_brings_its_tokenizer(workspace: Workspace, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = Tokenizer.train(TEXTS * 3, vocab_size=300)
    path = write_gguf(tiny_llama(vocab_size=300), tmp_path / "Tiny Q8.gguf", tokenizer)
    artifact = import_model(workspace, str(path))
    assert artifact.name == "tiny-q8" and "tokenizer.json" in artifact.files
    export_model(workspace, artifact.ref, tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs("La maleta")["input_ids"][-3:] == tokenizer.encode("La maleta")[-3:]


def test_a_tokenizer_can_be_given(workspace: Workspace, tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(TEXTS * 3, vocab_size=300)
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "tokenizer.json").write_text(tokenizer.to_json())
    path = write_checkpoint(tmp_path / "tiny", "llama2c", tiny_llama(vocab_size=300))
    assert "tokenizer.json" not in import_model(workspace, str(path)).files
    artifact = import_model(workspace, str(path), tokenizer=tmp_path / "t")
    assert Tokenizer.load(workspace.file(artifact, "tokenizer.json")).encode("niño") == tokenizer.encode(
        "niño"
    )


def test_a_model_without_a_format_of_conversations_is_given_one(workspace: Workspace, tmp_path: Path) -> None:
    folder = hugging_face_folder(tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    talk = [("user", "¿Sí?"), ("assistant", "Sí.")]
    silent = import_model(workspace, str(folder), "silent")
    with pytest.raises(UserError, match="--chat-template plain"):
        tokenizer_of(workspace, silent).encode_chat(talk, False)
    given = import_model(workspace, str(folder), "given", chat_template=PLAIN_TEMPLATE)
    tokenizer = tokenizer_of(workspace, given)
    ids, written = tokenizer.encode_chat(talk, False)
    answer = [id for id, mine in zip(ids, written, strict=True) if mine]
    assert answer == [*tokenizer.encode("Sí."), tokenizer.end_id]
    asked, _ = tokenizer.encode_chat(talk[:1], True)
    assert ids[: len(asked)] == asked
    assert tokenizer.decode(asked) == "User:\n¿Sí?\nAssistant:\n"
    # Everything else is what came, and it goes out with the model.
    export_model(workspace, given.ref, tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == PLAIN_TEMPLATE
    same_tensors(folder, tmp_path / "out")
    with pytest.raises(UserError, match="writes no question, or no answer"):
        import_model(workspace, str(folder), "mute", chat_template="always the same")


def test_an_export_replaces_only_what_is_its_own(workspace: Workspace, tmp_path: Path) -> None:
    import_model(workspace, str(write_checkpoint(tmp_path / "tiny", "safetensors")))
    out = tmp_path / "out"
    out.mkdir()
    export_model(workspace, "tiny", out)
    export_model(workspace, "tiny", out, max_shard_bytes=30_000)
    assert not (out / "model.safetensors").exists()
    shutil.rmtree(out)
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty, and no earlier export"):
        export_model(workspace, "tiny", out)
    assert (out / "thesis.txt").exists()
    export_model(workspace, "tiny", out, force=True)
    assert not (out / "thesis.txt").exists()
    with pytest.raises(UserError, match="current folder"):
        export_model(workspace, "tiny", Path.cwd().parent, force=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is not a folder"):
        export_model(workspace, "tiny", tmp_path / "file", force=True)


def test_what_the_user_put_into_an_export_is_not_lost(workspace: Workspace, tmp_path: Path) -> None:
    import_model(workspace, str(write_checkpoint(tmp_path / "tiny", "safetensors")))
    out = tmp_path / "out"
    export_model(workspace, "tiny", out)
    (out / "notes").mkdir()
    (out / "notes" / "tesis.txt").write_text("mía")
    with pytest.raises(UserError, match=r"tesis\.txt: is no part of the earlier export"):
        export_model(workspace, "tiny", out)
    assert (out / "notes" / "tesis.txt").read_text() == "mía"
    shutil.rmtree(out / "notes")
    config = (out / "config.json").read_bytes()
    for changed in (config + b"\n", config.swapcase()):
        (out / "config.json").write_bytes(changed)
        with pytest.raises(UserError, match=r"config\.json: was changed since its export"):
            export_model(workspace, "tiny", out)
        assert (out / "config.json").read_bytes() == changed
    (out / "config.json").unlink()
    (out / "config.json").symlink_to(tmp_path / "tiny" / "config.json")
    with pytest.raises(UserError, match="was changed"):
        export_model(workspace, "tiny", out)
    for mark in ("{}", "[", '{"files": {"config.json": 5}}'):
        (out / "yunque.json").write_text(mark)
        with pytest.raises(UserError, match=r"no earlier export|was changed|is no part"):
            export_model(workspace, "tiny", out)
    # As it was exported, or less, it is ours to replace.
    export_model(workspace, "tiny", out, force=True)
    (out / "config.json").unlink()
    export_model(workspace, "tiny", out)
    assert (out / "config.json").read_bytes() == config


def test_our_own_export_comes_back_with_its_tokenizer(
    workspace: Workspace, tmp_path: Path, put_tiny_model: Callable[..., Artifact]
) -> None:
    mini = put_tiny_model(workspace)
    export_model(workspace, "mini", tmp_path / "mini-hf")
    copy = import_model(workspace, str(tmp_path / "mini-hf"), name="copy")
    assert copy.files == {name: mini.files[name] for name in copy.files}
    assert set(copy.files) == {"config.json", "model.safetensors", "tokenizer.json"}
    ours, theirs = (Tokenizer.of_files(files_of(workspace, one)) for one in (mini, copy))
    assert ours.to_json() == theirs.to_json() and ours.encode("¿Dónde está?") == theirs.encode("¿Dónde está?")
    same_tensors(files_of(workspace, mini), files_of(workspace, copy))


def test_more_chat_templates_and_the_steps_after_a_model_are_kept(
    workspace: Workspace, tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path / "tiny", "safetensors")
    kept = {
        "additional_chat_templates/tool_use.jinja": "{{ tools }}",
        "1_Pooling/config.json": '{"pooling_mode": "lasttoken"}',
        "pasos/ñ.json": "{}",
    }
    left = {
        "additional_chat_templates/evil.py": "x",
        "1_Pooling/.hidden.json": "{}",
        "notes/private.json": "{}",
    }
    for name, content in {**kept, **left}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    steps = [{"path": ""}, {"path": "1_Pooling"}, {"path": "pasos"}, {"path": "2_Normalize"}]
    (folder / "modules.json").write_text(json.dumps(steps))
    artifact = import_model(workspace, str(folder))
    assert {name for name in artifact.files if "/" in name} == set(kept)
    export_model(workspace, "tiny", tmp_path / "out")
    for name, content in kept.items():
        assert (tmp_path / "out" / name).read_text() == content
    # Such an export is known as ours too.
    export_model(workspace, "tiny", tmp_path / "out")
    for outside in ("../notes", "/etc", ".."):
        (folder / "modules.json").write_text(json.dumps([{"path": outside}]))
        with pytest.raises(UserError, match="not a plain file name"):
            import_model(workspace, str(folder))


def test_numbers_that_a_type_cannot_hold_are_told(workspace: Workspace, tmp_path: Path) -> None:
    model = tiny_llama()
    model.norm.weight[:2] = 1e30
    folder = write_checkpoint(tmp_path / "tiny", "safetensors", model)
    with pytest.raises(UserError, match=r"norm\.weight has 2 numbers that are beyond float16.* bfloat16"):
        import_model(workspace, str(folder), dtype="float16")
    assert workspace.list("model") == [] and not list(workspace.root.glob(".import*"))
    import_model(workspace, str(folder), dtype="bfloat16")
    # What was infinite before is kept as it is.
    model.norm.weight[:2] = float("inf")
    import_model(workspace, str(write_checkpoint(tmp_path / "inf", "safetensors", model)), dtype="float16")


def test_a_file_that_is_read_whole_must_fit_into_memory(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("legacy", "bin"):
        write_checkpoint(tmp_path / kind, kind)
    monkeypatch.setattr("os.sysconf", lambda _: 100)
    with pytest.raises(UserError, match="GB of memory"):
        import_model(workspace, str(tmp_path / "legacy"))
    import_model(workspace, str(tmp_path / "bin"))


@pytest.mark.parametrize(
    ("folder", "name"),
    [("unicodé ñ", "unicode-n"), ("Ñandú_", "nandu"), ("_Año 2.0-", "ano-2.0"), ("a" * 63 + "-b", "a" * 63)],
)
def test_a_spanish_name_keeps_its_letters(
    folder: str, name: str, workspace: Workspace, tmp_path: Path
) -> None:
    made = import_model(workspace, str(write_checkpoint(tmp_path / folder, "safetensors")))
    assert made.name == name


def test_a_model_of_another_shape_does_not_go_out_as_gguf(workspace: Workspace, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2, n_positions=16)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt")
    import_model(workspace, str(tmp_path / "gpt"))
    with pytest.raises(UserError, match="GGUF export is for float models of llama"):
        export_model(workspace, "gpt", tmp_path / "out", "gguf")
    assert not (tmp_path / "out").exists()


def test_a_name_of_the_hub_is_brought_here(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hugging_face_folder(tmp_path / "made")
    for name in ("pytorch_model.bin", "flax_model.msgpack", "model.gguf"):
        (folder / name).write_bytes(b"not wanted")
    cache = tmp_path / "models--org--tiny" / "snapshots" / "c0ffee"
    asked: list[str] = []

    def one(name: str, file: str, revision: str | None = None) -> str:
        assert (name, revision) == ("org/tiny", "c0ffee")
        asked.append(file)
        cache.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / file, cache / file)
        return str(cache / file)

    def info(_self: Any, name: str, revision: str | None = None) -> Any:
        assert (name, revision) == ("org/tiny", "v1")
        return SimpleNamespace(
            sha="c0ffee", siblings=[SimpleNamespace(rfilename=path.name) for path in folder.iterdir()]
        )

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", one)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
    artifact = import_model(workspace, "hf:org/tiny@v1")
    assert artifact.ref == "model/tiny@1"
    assert artifact.config["source"] == "hf:org/tiny@v1" and artifact.config["revision"] == "c0ffee"
    assert "model.safetensors" in asked and "LICENSE" in asked
    assert not {"modeling_evil.py", "pytorch_model.bin", "flax_model.msgpack", "model.gguf"} & set(asked)


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), r"could not be kept .* No space left on device$"),
        (PermissionError(errno.EACCES, "Permission denied", "/cache"), r"Permission denied \(/cache\)"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "cannot be reached from here"),
        (ConnectionError("no route"), r"cannot be reached from here .* run `yunque model import FOLDER`"),
        (type("RepositoryNotFoundError", (Exception,), {})(), "there is no such model"),
        (type("GatedRepoError", (Exception,), {})(), "licence to be accepted"),
    ],
)
def test_a_hub_that_does_not_answer_is_told(
    error: Exception, match: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match=match):
        import_model(workspace, "hf:org/tiny")


def test_the_cache_of_a_repository_of_sentence_transformers_comes_in(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import BertConfig, BertModel

    made, repository = tmp_path / "made", tmp_path / "models--org--tiny"
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(made)
    (made / "1_Pooling").mkdir()
    (made / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (made / "additional_chat_templates").mkdir()
    (made / "additional_chat_templates" / "rag.jinja").write_text("{{ documents }}")
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    steps = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (made / "modules.json").write_text(json.dumps(steps))
    names = [path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()]

    def one(_name: str, file: str, revision: str | None = None) -> str:
        # As in a real cache: the content is a blob, and a link leads there.
        path = repository / "snapshots" / str(revision) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        (repository / "blobs").mkdir(exist_ok=True)
        blob = repository / "blobs" / sha256_of(made / file)
        shutil.copyfile(made / file, blob)
        path.symlink_to(Path(*[".."] * (2 + file.count("/")), "blobs", blob.name))
        return str(path)

    siblings = [SimpleNamespace(rfilename=name) for name in names]
    info = SimpleNamespace(sha="c0ffee", siblings=siblings)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", one)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: info)
    artifact = import_model(workspace, "hf:org/tiny")
    assert set(artifact.files) >= {"1_Pooling/config.json", "additional_chat_templates/rag.jinja"}
    model = load_model(files_of(workspace, artifact))
    assert model.config.pooling == "cls"
    assert load_model(repository / "snapshots" / "c0ffee").config.pooling == "cls"


def test_a_name_that_is_none_and_a_missing_package_are_told(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("hf:", "hf:a/b/c", "hf:../x", "hf:org/tiny@"):
        with pytest.raises(UserError, match=r"hf:ORG/NAME|no name follows|cannot be a name"):
            import_model(workspace, name)
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'yunque\[hub\]'"):
        import_model(workspace, "hf:org/tiny")
