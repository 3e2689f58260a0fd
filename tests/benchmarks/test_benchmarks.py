"""The benchmarks run; how fast they find anything to be is not for a test."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

FOLDER = Path(__file__).parents[2] / "benchmarks"
WORKER = """
import time, turns

def work(gate):
    for step in range(100):
        time.sleep(0.01 * (given.worker == "slow"))
        gate.tick(lambda: {"loss": 5.0 - step})

given, _ = turns.parser_of(None).parse_known_args()
if given.worker == "broken":
    raise SystemExit(1)
print("noise")
turns.run_worker(work, 3)
"""


@pytest.fixture
def load(monkeypatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    torch.set_num_threads(1)
    return importlib.import_module


class Stub:
    """A gate that is open for some steps."""

    def __init__(self, over: type[Exception], steps: int) -> None:
        self.told: list[dict] = []
        self._over, self._left = over, steps

    def tick(self, tell=dict) -> None:
        self._left -= 1
        if self._left <= 0:
            self.told.append(tell())
            raise self._over


def run(load, steps: int, work: Callable[[Stub], None]) -> dict:
    over = load("turns").Over
    gate = Stub(over, steps)
    with pytest.raises(over):
        work(gate)
    return gate.told[0]


def test_programs_take_turns_and_tell_what_they_took(load, tmp_path, monkeypatch) -> None:
    turns = load("turns")
    monkeypatch.setenv("PYTHONPATH", str(FOLDER))
    script = tmp_path / "worker.py"
    script.write_text(WORKER.replace('print("noise")\n', ""))
    programs = [turns.Program(name, str(script), [], 1) for name in ("slow", "quick")]
    slow, quick = turns.race(programs, 2)
    assert slow.loss == quick.loss == 0.0  # the sixth step's
    assert slow.wall > 0.06 > 0 < quick.wall < slow.wall
    assert [len(program.slices) for program in programs] == [2, 2]
    assert programs[0].median("wall") > programs[1].median("wall")


def test_a_program_that_stops_is_named(load, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(FOLDER))
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    with pytest.raises(SystemExit, match="broken stopped"):
        load("turns").Program("broken", str(script), [], 1).turn()


def test_shakespeare_is_measured_on_every_character_of_the_last_tenth(load, tmp_path) -> None:
    shakespeare = load("shakespeare")
    path = tmp_path / "input.txt"
    path.write_text("To be, or not to be: that is the question. " * 200)
    text = shakespeare.Text.read(path)
    assert len(text.training) == 9 * len(text.validation)
    model = shakespeare.RecipeModel(text.kinds).eval()
    windows = text.validation[: 13 * 64 + 1]
    scores = model(windows[:-1].view(13, 64)).flatten(0, 1)
    whole = F.cross_entropy(scores, windows[1:]).item()
    assert shakespeare.validation_loss(model, text.validation, 64) == pytest.approx(whole, rel=1e-5)
    way = shakespeare.Ours(length=16, width=32, inner=48, layers=1, heads=2, steps=40)
    ours = run(load, 40, lambda gate: shakespeare.ours(gate, text, way))["loss"]
    untrained = run(load, 1, lambda gate: shakespeare.ours(gate, text, way))["loss"]
    assert ours < untrained - 0.5
    assert run(load, 2, lambda gate: shakespeare.recipe(gate, text, 2))["loss"] > ours


def test_every_way_of_lora_takes_a_step(load) -> None:
    lora = load("lora")
    ways = lora.ways(lora.TINY.layers)
    assert ways.pop("full") is None and len(ways) == 6
    for way in (None, *ways.values()):
        # Memory that the process gave back meanwhile makes the difference negative: only that it is told counts.
        assert "above" in run(load, 1, lambda gate, way=way: lora.work(gate, lora.TINY, way))


def test_our_loop_runs_under_the_gate(load) -> None:
    trainer = load("trainer")
    for checkpoints in (False, True):
        plan = trainer.Plan("float32", 1)
        run(load, 2, lambda gate, c=checkpoints, p=plan: trainer.ours(gate, trainer.TINY, p, c))
    run(load, 2, lambda gate: trainer.bare(gate, trainer.TINY, trainer.Plan("float32", 1)))


def test_time_to_loss_trains_what_it_measures(load, tmp_path, monkeypatch) -> None:
    race = load("time_to_loss")
    monkeypatch.setattr(race, "LENGTH", 32)
    monkeypatch.setattr(race, "HELD_OUT", 4)
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"Number {n} is followed by number {n + 1}." for n in range(1000)))
    data = race.encode(path)
    config = race.configuration(True, None).model_copy(
        update={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
        }
    )
    losses = [
        run(load, n, lambda gate: race.ours(gate, data, race.Ours(), config, race.Schedule(6, 1)))["loss"]
        for n in (1, 6)
    ]
    assert losses[1] < losses[0]
    monkeypatch.undo()
    assert race.turned(409_600, 16) == 100


def test_the_first_token_is_measured_alone_and_among_others(load, monkeypatch, capsys) -> None:
    arguments = ["first_token.py", "--quick", "--rounds", "2", "--threads", "1", "--prompt", "40"]
    monkeypatch.setattr("sys.argv", arguments)
    load("first_token").main()
    told = capsys.readouterr().out
    assert "while 15 are written" in told and "the last" in told
