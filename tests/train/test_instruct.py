import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from yunque.data.instructions import InstructionRow, add_instructions, write_instructions
from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.generate.conversation import encode_answer
from yunque.generate.engine import Engine
from yunque.model import load_model
from yunque.model.adapter_files import load_adapter
from yunque.model.lora import LoraSettings
from yunque.train import TuneSettings, TuningRows, pretrain, quantize, tune, tuning_rows
from yunque.train.objectives.answers import answer_losses

GOLDEN = Path(__file__).with_name("golden_answers.json")


def row(number: int) -> InstructionRow:
    good = number % 2 == 0
    words = ("excelente", "buenísimo") if good else ("horrible", "malísimo")
    text = f"El {('perro', 'gato', 'loro')[number % 3]} es {words[number // 2 % 2]}."
    answer = "sí" if good else "no"
    return InstructionRow(f"r{number}", "sentiment", "es", "t1", "¿Es bueno?", text, answer, ("sí", "no"))


ROWS = [row(number) for number in range(24)]


@pytest.fixture
def base(workspace, settings):
    shape = settings.model.model_copy(update={"context": 64})
    return pretrain(workspace, settings.model_copy(update={"steps": 5, "model": shape}))


def settings_of(**changes) -> TuneSettings:
    values = {"precision": "float32", "batch_size": 8, "epochs": 40, "replay": 0, "checkpoint_every": 25}
    optimizer = {"learning_rate": 5e-3}
    return TuneSettings.model_validate({**values, "optimizer": optimizer, **changes})


def train(workspace, base, settings, *arguments, rows=ROWS, dataset=None, validation=(), **more):
    return tune(workspace, base.ref, [TuningRows(rows, validation, dataset)], settings, *arguments, **more)


def log(workspace, made) -> list[dict]:
    return [json.loads(line) for line in workspace.file(made, "loss.jsonl").read_text().splitlines()]


def test_only_the_answer_and_its_end_are_learned(workspace, base) -> None:
    engine = Engine.open(workspace, base.ref)
    tokenizer = engine.tokenizer
    written = encode_answer(tokenizer, engine.model, [("user", ROWS[0].question)], ROWS[0].answer)
    assert written.answer == [*tokenizer.encode("sí"), tokenizer.end_id]
    asked, _ = tokenizer.encode_chat([("user", ROWS[0].question)], True)
    assert written.prompt == asked


def test_padding_does_not_change_the_loss_of_a_row(workspace, base) -> None:
    engine = Engine.open(workspace, base.ref)
    short, long = (
        encode_answer(engine.tokenizer, engine.model, [("user", row(n).question)], "no" * (1 + 9 * n))
        for n in (0, 1)
    )
    (alone,), together = answer_losses(engine.model, [short]), answer_losses(engine.model, [short, long])
    torch.testing.assert_close(alone, together[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(alone, together[1], rtol=1e-4, atol=1e-5)
    for written, loss in zip((short, long), together.tolist(), strict=True):
        assert -loss * len(written.answer) == pytest.approx(
            engine.score(written.prompt, written.answer), rel=1e-4
        )


def test_the_losses_of_a_fixed_run_are_those_kept_in_the_repository(workspace, base) -> None:
    losses = [
        line["loss"] for line in log(workspace, train(workspace, base, settings_of(epochs=50 / 3, replay=1)))
    ]
    golden = json.loads(GOLDEN.read_text())
    assert losses == pytest.approx(golden, rel=1e-3)
    # Negative control: the losses of one step later are others.
    assert losses[1:] != pytest.approx(golden[:-1], rel=1e-3)


def test_tuning_teaches_the_answers_and_the_end(workspace, base) -> None:
    dataset = write_instructions(workspace, "questions", {"train": ROWS})
    tuned = train(workspace, base, settings_of(), dataset=dataset)
    assert tuned.name == "tiny-tuned"
    assert tuned.parents == (base.ref, dataset.ref)

    def right(ref: str) -> int:
        engine = Engine.open(workspace, ref)
        found = 0
        for each in ROWS:
            asked, _ = engine.tokenizer.encode_chat([("user", each.question)], True)
            steps = list(engine.stream(asked, GenerationConfig(max_new_tokens=8)))
            found += "".join(step.text for step in steps) == each.answer and steps[-1].finish_reason == "stop"
        return found

    assert right(base.ref) == 0
    assert right(tuned.ref) == len(ROWS)
    seen = json.loads(workspace.file(tuned, "rows_seen.json").read_text())["datasets"]
    assert seen == {dataset.ref: {each.id: 40 for each in ROWS}}


def test_a_tuning_that_crashed_goes_on_to_the_same_bits_with_replay_too(workspace, base) -> None:
    from broken_off import StopAt

    whole = train(workspace, base, settings_of(name="whole", epochs=10, replay=1, checkpoint_every=7))
    parts = settings_of(name="parts", epochs=10, replay=1, checkpoint_every=7)
    with pytest.raises(RuntimeError):
        train(workspace, base, parts, StopAt(17))
    again = train(workspace, base, parts)
    assert again.files["model.safetensors"] == whole.files["model.safetensors"]
    seen = json.loads(workspace.file(whole, "rows_seen.json").read_text())["datasets"]
    assert set(seen) == {"rows", "dataset/animals@1"}


def test_an_adapter_learns_goes_on_after_a_crash_and_is_kept_beside_the_merged_model(workspace, base) -> None:
    from broken_off import StopAt

    lora = LoraSettings(rank=4, alpha=8, targets="all-linear")
    whole, parts = (
        settings_of(name=name, lora=lora, epochs=12, checkpoint_every=5) for name in ("whole", "parts")
    )
    made = train(workspace, base, whole)
    with pytest.raises(RuntimeError):
        train(workspace, base, parts, StopAt(9))
    run = next(folder for folder in workspace.runs.iterdir() if folder.name.startswith("parts-"))
    checkpoint = next((run / "checkpoints").glob("step-*")) / "model.safetensors"
    assert checkpoint.stat().st_size < 0.5 * workspace.file(base, "model.safetensors").stat().st_size
    assert "embedding.weight" not in load_file(checkpoint)
    again = train(workspace, base, parts)
    assert again.files["model.safetensors"] == made.files["model.safetensors"]
    losses = [
        json.loads(line)["loss"] for line in workspace.file(made, "loss.jsonl").read_text().splitlines()
    ]
    assert losses[-1] < 0.8 * losses[0]
    adapter = workspace.get("adapter/whole")
    assert made.parents == (base.ref, adapter.ref) and "adapter_config.json" in adapter.files
    # The adapter on the base is the merged model.
    loaded = load_adapter(
        load_model(workspace.files(base)),
        workspace.files(adapter),
        "whole",
    )
    merged = load_model(workspace.files(made))
    ids = torch.arange(9, 20)[None]
    torch.testing.assert_close(loaded(ids), merged(ids), rtol=1e-4, atol=1e-4)


def test_a_row_that_does_not_fit_is_told_with_file_and_line_or_left_out_and_counted(
    workspace, base, tmp_path
) -> None:
    long = InstructionRow("too-long", "x", "es", "t", "Repite.", "palabra " * 200, "sí")
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(json.dumps(each.as_dict()) for each in [*ROWS, long]))
    dataset = add_instructions(workspace, "mine", {"train": file})
    data = [tuning_rows(workspace, dataset)]
    with pytest.raises(UserError, match=rf"mine\.jsonl:{len(ROWS) + 1}: the row has \d+ tokens.*--skip-bad"):
        tune(workspace, base.ref, data, settings_of(epochs=1))
    told: list[str] = []
    tuned = tune(workspace, base.ref, data, settings_of(epochs=1), on_bad=told.append)
    assert len(told) == 1 and f"mine.jsonl:{len(ROWS) + 1}: the row has" in told[0]
    assert tuned.figures["left_out"] == 1
    seen = json.loads(workspace.file(tuned, "rows_seen.json").read_text())["datasets"][dataset.ref]
    assert set(seen) == {each.id for each in ROWS}
    # A file that was changed since says nothing of where a row was.
    file.write_text("")
    with pytest.raises(UserError, match="dataset/mine@1, row 'too-long': the row has"):
        tune(workspace, base.ref, data, settings_of(epochs=2))
    with pytest.raises(UserError, match="no row to tune on"):
        train(workspace, base, settings_of(), rows=[long], on_bad=told.append)


def test_seconds_bound_the_number_of_steps(workspace, base) -> None:
    tuned = train(workspace, base, settings_of(epochs=100_000, seconds=0.5))
    assert tuned.figures["steps"] < 1000


def test_a_quantized_model_is_smaller_about_as_good_and_not_tuned(workspace, base) -> None:
    small = quantize(workspace, base.ref)
    figures = small.figures
    assert small.name == "tiny-int8" and small.parents == (base.ref,)
    assert figures["bytes_after"] < 0.4 * figures["bytes_before"]
    assert figures["perplexity_after"] == pytest.approx(figures["perplexity_before"], rel=0.05)
    assert figures["perplexity_after"] != figures["perplexity_before"]
    assert figures["measured_on"] == ["dataset/animals@1"]
    with pytest.raises(UserError, match="is quantized"):
        train(workspace, small, settings_of())
    adapted = train(workspace, small, settings_of(name="qlora", lora=LoraSettings(rank=4), epochs=2))
    assert adapted.parents[0] == small.ref and adapted.parents[1] == "adapter/qlora@1"
