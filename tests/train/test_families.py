"""Every family is made from the same few settings, trained, kept, and asked."""

import json

import pytest
import torch
from broken_off import StopAt, log, weights
from pydantic import ValidationError
from torch.testing import assert_close
from typer.testing import CliRunner

from yunque.cli.main import app
from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.generate.engine import Engine
from yunque.model import load_model, new_model
from yunque.tokenizer import tokenizer_of
from yunque.train import PretrainSettings, plan_pretraining, pretrain
from yunque.train.corpus import Corpus
from yunque.train.loss import next_token_loss
from yunque.train.shapes import ModelSettings, NewModelSettings, make_model

DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gpt2", "falcon", "rnn")
ENCODER_DECODERS = ("t5", "transformer", "rnn-seq2seq")


def small(settings: PretrainSettings, family: str, **fields) -> PretrainSettings:
    """A run of a few steps with a model of this family."""
    shape = {"family": family, "hidden_size": 32, "context": 32, **fields.pop("model", {})}
    chosen = {"steps": 4, "batch_size": 4, "checkpoint_every": 2, "validate_every": 4, **fields}
    return PretrainSettings.model_validate(
        {**settings.model_dump(), "name": family, "model": shape, **chosen}
    )


@pytest.mark.parametrize("family", [*DECODERS, *ENCODER_DECODERS])
def test_every_family_is_trained_and_asked(workspace, settings, family) -> None:
    made = pretrain(workspace, small(settings, family))
    net = load_model(workspace.files(made))
    assert net.config.model_type == family
    lines = log(workspace, made)
    assert lines[-1]["validation_loss"] == made.figures["validation_loss"]
    assert made.figures["rows_seen"] > 0
    tokenizer = tokenizer_of(workspace, made)
    assert net.config.vocab_size == tokenizer.vocab_size
    engine = Engine.open(workspace, made.ref)
    steps = list(engine.stream(tokenizer.encode_prompt("El perro"), GenerationConfig(max_new_tokens=3)))
    assert 1 <= len(steps) <= 3


@pytest.mark.parametrize("family", [*DECODERS, *ENCODER_DECODERS])
def test_every_family_is_planned(workspace, settings, family) -> None:
    plan = plan_pretraining(workspace, small(settings, family))
    shape = small(settings, family).model
    net = new_model(
        shape.configuration(tokenizer_of(workspace, workspace.get("bpe", "tokenizer"))), torch.Generator()
    )
    parameters = sum(weight.numel() for weight in net.parameters())
    # Sentinels are rows of the embedding, and of the head where there is one.
    sentinels = {"t5": 2, "transformer": 1, "rnn-seq2seq": 1}.get(family, 0) * 100 * 32
    assert plan.parameters == parameters + sentinels
    assert plan.memory_bytes > 16 * plan.parameters and plan.flops > 0
    assert plan.steps == 4 and plan.tokens > 0


@pytest.mark.parametrize("family", DECODERS)
def test_packed_documents_have_the_losses_that_each_has_alone(workspace, family) -> None:
    tokenizer = tokenizer_of(workspace, workspace.get("bpe", "tokenizer"))
    shape = ModelSettings(family=family, hidden_size=32, context=32)
    net = new_model(shape.configuration(tokenizer), torch.Generator().manual_seed(0)).eval()
    end = tokenizer.end_id
    documents = [[10 + (7 * number + place) % 200 for place in range(3 + 4 * number)] for number in range(6)]
    corpus = Corpus(documents, [("d", str(n)) for n in range(6)], end, 32, 0)
    windows = corpus.windows(0, corpus.windows_per_epoch)
    with torch.inference_mode():
        hidden = net.hidden(windows.input_ids, segment_ids_BT=windows.segment_ids)
        packed = torch.nn.functional.cross_entropy(
            net.logits(hidden).flatten(0, 1), windows.targets.flatten(), reduction="none"
        )
        leaking = torch.nn.functional.cross_entropy(
            net(windows.input_ids).flatten(0, 1), windows.targets.flatten(), reduction="none"
        )
        alone = []
        for ids, targets, segments in zip(
            windows.input_ids, windows.targets, windows.segment_ids, strict=True
        ):
            for segment in segments.unique():
                of = segments == segment
                logits = net(ids[of][None])[0]
                alone.append(torch.nn.functional.cross_entropy(logits, targets[of], reduction="none"))
        assert windows.segment_ids.max() > 1
        assert_close(packed, torch.cat(alone), rtol=1e-5, atol=1e-5)
        assert_close(next_token_loss(net, windows), torch.cat(alone).mean(), rtol=1e-5, atol=1e-5)
    # Negative control: where documents see one another, losses differ.
    with pytest.raises(AssertionError):
        assert_close(leaking, torch.cat(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("step", [1, 3, 5])
@pytest.mark.parametrize("family", ["t5", "transformer", "rnn-seq2seq"])
def test_span_corruption_that_crashed_and_went_on_ends_with_the_same_bits(
    workspace, settings, family, step
) -> None:
    """The Transformer drops numbers out, so torch's generator counts too, from the first step on."""
    wanted = small(settings, family, steps=6, model={"layers": 1})
    whole = pretrain(workspace, wanted)
    twin = wanted.model_copy(update={"name": "twin"})
    with pytest.raises(RuntimeError, match="crash"):
        pretrain(workspace, twin, StopAt(step))
    torch.rand(3)
    again = pretrain(workspace, twin)
    assert weights(workspace, again) == weights(workspace, whole)
    assert [line["loss"] for line in log(workspace, again)] == [
        line["loss"] for line in log(workspace, whole)
    ]
    other = pretrain(workspace, wanted.model_copy(update={"seed": 1}))
    assert weights(workspace, other) != weights(workspace, whole)


def test_sentinels_are_written_and_read_as_text(workspace, settings) -> None:
    """A model that has seen one sentence often writes what was taken out of it."""
    from yunque.data.dataset import write_dataset
    from yunque.data.row import Row, Source, row_id

    text = "uno dos tres cuatro cinco seis siete ocho nueve diez once doce"
    row = Row(row_id("a.md", text), text, "es", Source("a.md", "0" * 64, "line 1"), "a.md")
    write_dataset(workspace, "one", {"train": [row] * 8, "validation": []}, card={}, parents=[], config={})
    wanted = small(settings, "t5", steps=150, data=("one",), batch_size=8, model={"context": 64, "layers": 1})
    made = pretrain(workspace, wanted)
    assert made.figures["loss"] < 2  # ln 400 is 6
    engine = Engine.open(workspace, made.ref)
    whole = engine.tokenizer.encode(text)
    asked = engine.tokenizer.decode(whole[:4]) + "<extra_id_0>" + engine.tokenizer.decode(whole[7:])
    steps = engine.stream(engine.tokenizer.encode_prompt(asked), GenerationConfig(max_new_tokens=8))
    answer = "".join(step.text for step in steps)
    assert answer.startswith("<extra_id_0>")
    assert answer.removeprefix("<extra_id_0>")[:3] in text


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"family": "rnn", "heads": 4}, "heads is not for rnn, only for llama, .*: leave it out"),
        ({"family": "gpt2", "key_value_heads": 2}, "key_value_heads is not for gpt2, only for llama"),
        ({"family": "llama", "cell": "gru"}, "cell is not for llama, only for rnn, rnn-seq2seq"),
        ({"family": "t5", "dropout": 0.1}, "dropout is not for t5, only for transformer"),
        ({"family": "bert"}, "Input should be 'llama', 'mistral'"),
        ({"hidden_size": 36}, "hidden_size must be a multiple of twice heads"),
        ({"family": "t5", "hidden_size": 34}, "hidden_size must be a multiple of heads"),
        ({"heads": 4, "key_value_heads": 3}, "heads must be a multiple of key_value_heads"),
    ],
)
def test_a_setting_that_a_family_has_not_is_refused(fields, sentence) -> None:
    with pytest.raises(ValidationError, match=sentence):
        ModelSettings.model_validate(fields)


def test_corruption_is_refused_for_a_model_that_goes_on_with_a_text(settings) -> None:
    fields = {**settings.model_dump(), "corruption": {"noise_share": 0.3}}
    with pytest.raises(ValidationError, match="corruption is for encoder-decoders, and llama is none"):
        PretrainSettings.model_validate(fields)


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"family": "falcon"}, {"multi_query": True, "new_decoder_architecture": False}),
        ({"family": "falcon", "key_value_heads": 2}, {"new_decoder_architecture": True, "num_kv_heads": 2}),
        ({"family": "mistral", "window": 8}, {"sliding_window": 8}),
        ({"family": "t5"}, {"is_gated_act": True, "tie_word_embeddings": False, "head_dim": 64}),
        ({"family": "rnn", "cell": "gru"}, {"cell": "gru", "num_hidden_layers": 2}),
        ({"family": "rnn-seq2seq", "attention": False}, {"attention": False}),
        ({"family": "transformer", "dropout": 0.0}, {"dropout": 0.0, "intermediate_size": 1024}),
        ({}, {"intermediate_size": 688, "num_attention_heads": 4, "num_key_value_heads": 2}),
    ],
)
def test_settings_become_the_fields_of_the_family(workspace, fields, wanted) -> None:
    tokenizer = tokenizer_of(workspace, workspace.get("bpe", "tokenizer"))
    config = ModelSettings.model_validate(fields).configuration(tokenizer)
    assert {name: getattr(config, name) for name in wanted} == wanted
    if ModelSettings.model_validate(fields).reads_a_source:
        assert config.decoder_start_token_id == tokenizer.pad_id


def test_a_new_model_is_the_same_for_the_same_settings_and_opens(workspace) -> None:
    shape = ModelSettings(family="rnn-seq2seq", hidden_size=32, layers=1)
    first, second, third = (
        make_model(workspace, NewModelSettings(name=name, model=shape, seed=seed))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert weights(workspace, first) == weights(workspace, second) != weights(workspace, third)
    assert first.parents == ("tokenizer/bpe@1",)
    net = load_model(workspace.files(first))
    assert sum(weight.numel() for weight in net.parameters()) == first.figures["parameters"]
    huge = shape.model_copy(update={"hidden_size": 2**18})
    with pytest.raises(UserError, match="GB of memory"):
        make_model(workspace, NewModelSettings(name="huge", model=huge))


def test_the_commands_take_a_family(workspace, monkeypatch) -> None:
    monkeypatch.setenv("YUNQUE_WORKSPACE", str(workspace.root))
    run = CliRunner().invoke
    shape = ["model.hidden_size=32", "model.context=32", "model.layers=1"]
    done = run(app, ["model", "new", "--family", "transformer", "--name", "fresh", *shape, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["config"]["model"]["family"] == "transformer"
    done = run(
        app,
        [
            "train",
            "--data",
            "animals",
            "--family",
            "t5",
            "--steps",
            "1",
            "precision=float32",
            *shape,
            "--json",
        ],
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["ref"] == "model/mini@1"
    wrong = run(app, ["train", "--family", "bert", *shape])
    assert isinstance(wrong.exception, UserError) and "model.family" in str(wrong.exception)
