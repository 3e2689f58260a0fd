"""Prompt tuning by command: an adapter is made, opened by its name, measured, served."""

import json

import pytest
import torch
from broken_off import StopAt
from small_writers import ROWS, put_writer, settings_of
from typer.testing import CliRunner

from yunque.cli.main import app
from yunque.data.instructions import write_instructions
from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.generate.opening import find_writer
from yunque.llm import Message
from yunque.llm.local import LocalModel
from yunque.model import load_model
from yunque.model.adapter_files import load_adapter
from yunque.model.prompt_tuning import prompt_vectors
from yunque.server.served import Served, Settings
from yunque.train import TuningRows, tune
from yunque.workspace import Workspace

PROMPT = {"num_virtual_tokens": 6}


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Workspace:
    monkeypatch.setenv("YUNQUE_WORKSPACE", str(tmp_path / "ws"))
    return Workspace.open(tmp_path / "ws")


def settings(**changes):
    return settings_of(
        **{"epochs": 40, "prompt": PROMPT, "optimizer": {"learning_rate": 0.1, "weight_decay": 0}, **changes}
    )


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_prompt_is_kept_as_an_adapter_and_opened_by_its_name(workspace, family) -> None:
    base = put_writer(workspace, family)
    made = tune(workspace, base.ref, [TuningRows(ROWS)], settings(name="polite"))
    assert made.ref == "adapter/polite@1" and made.parents == (base.ref,)
    assert {"adapter_config.json", "adapter_model.safetensors", "rows_seen.json"} <= set(made.files)
    losses = [
        json.loads(line)["loss"] for line in workspace.file(made, "loss.jsonl").read_text().splitlines()
    ]
    assert losses[-1] < 0.9 * losses[0]
    said = [Message("user", ROWS[0].question)]
    plain, tuned = LocalModel.open(workspace, base.ref), LocalModel.open(workspace, "adapter/polite")
    assert tuned.name == LocalModel.open(workspace, "polite").name == "adapter/polite@1"
    assert tuned.score(said, ["sí"])[0] > plain.score(said, ["sí"])[0] + 0.5
    # What is opened by its name is the base with the adapter on it; the control is the base alone.
    by_hand = load_adapter(load_model(workspace.files(base)), workspace.files(made))
    assert torch.equal(prompt_vectors(by_hand), prompt_vectors(tuned.engine.model))
    config = GenerationConfig(max_new_tokens=3)
    with Served(workspace).use("adapter/polite") as served:
        text = "".join(piece.text for piece in served.chat(said, Settings(config, True)))
        assert text == tuned.chat(said, config).text
    assert "adapter/polite" in {each["id"] for each in Served(workspace).listed()}


def test_a_prompt_begins_in_the_vocabulary_or_as_a_text_and_goes_on_after_a_crash(workspace) -> None:
    base = put_writer(workspace, "llama")
    table = load_model(workspace.files(base)).embedding.weight

    def begun(**prompt) -> torch.Tensor:
        still = settings(name="still", epochs=1, prompt=prompt, optimizer={"learning_rate": 1e-30})
        files = workspace.files(tune(workspace, base.ref, [TuningRows(ROWS)], still))
        return prompt_vectors(load_adapter(load_model(workspace.files(base)), files))

    for vector in begun(num_virtual_tokens=3):
        assert (table == vector).all(dim=1).any()
    text = LocalModel.open(workspace, base.ref).engine.tokenizer.encode("El perro")
    # Repeated, or cut, to the number of vectors.
    text = (text * 3)[:3]
    assert torch.equal(begun(num_virtual_tokens=3, initialization="text", text="El perro"), table[text])
    with pytest.raises(ValueError, match="belong together"):
        settings(prompt={"text": "El perro"})
    whole = tune(workspace, base.ref, [TuningRows(ROWS)], settings(name="whole", epochs=12))
    with pytest.raises(RuntimeError):
        tune(workspace, base.ref, [TuningRows(ROWS)], settings(name="parts", epochs=12), StopAt(11))
    parts = tune(workspace, base.ref, [TuningRows(ROWS)], settings(name="parts", epochs=12))
    assert parts.files["adapter_model.safetensors"] == whole.files["adapter_model.safetensors"]


def test_the_command_makes_a_prompt_reports_on_it_and_writes_with_it(workspace) -> None:
    base = put_writer(workspace, "llama")
    held_out = [each for each in ROWS if each.id in ("r2", "r3")]
    learn = [each for each in ROWS if each not in held_out]
    write_instructions(workspace, "tasks", {"train": learn, "heldout": held_out})
    tune_it = ["tune", base.name, "--data", "tasks", "--prompt", "--name", "polite", "--epochs", "2"]
    tune_it += ["prompt.num_virtual_tokens=4", "precision=float32"]
    planned = CliRunner().invoke(app, [*tune_it, "--plan", "--json"])
    assert planned.exit_code == 0, planned.output
    plan = json.loads(planned.stdout)
    assert plan["steps"] == 2 and plan["trained_parameters"] == 4 * 32
    assert not workspace.find("adapter/polite") and not list(workspace.runs.glob("*"))
    done = CliRunner().invoke(app, [*tune_it, "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["model"] == "adapter/polite@1" and report["accuracy"]["rows"] == 2
    wrote = CliRunner().invoke(
        app, ["generate", "adapter/polite", "Hola", "--chat", "--json", "--max-new-tokens", "3"]
    )
    assert wrote.exit_code == 0, wrote.output
    assert json.loads(wrote.stdout)["model"] == "adapter/polite@1"
    both = CliRunner().invoke(app, [*tune_it, "--lora"])
    assert isinstance(both.exception, UserError) and "exclude each other" in str(both.exception)


def test_a_name_is_a_model_before_it_is_an_adapter(workspace) -> None:
    base = put_writer(workspace, "llama")
    lora = {"rank": 2}
    made = tune(workspace, base.ref, [TuningRows(ROWS)], settings_of(name="both", epochs=1, lora=lora))
    assert made.kind == "model"
    assert find_writer(workspace, "both").ref == "model/both@1"
    adapter = find_writer(workspace, "adapter/both")
    merged, beside = (LocalModel.open(workspace, ref) for ref in (made.ref, adapter.ref))
    said = [Message("user", ROWS[0].question)]
    assert beside.score(said, ["sí"]) == pytest.approx(merged.score(said, ["sí"]), rel=1e-4)
    with pytest.raises(UserError, match="no adapter 'adapter/none'"):
        find_writer(workspace, "adapter/none")
    with pytest.raises(UserError, match="no model 'none'"):
        find_writer(workspace, "none")
