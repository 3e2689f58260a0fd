"""Translation: recurrent networks against the Transformer, English to Spanish, with equal parameters and equal time.

python examples/translation/run.py
"""

import json
import random
import sys
from bisect import bisect
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from grammar import Pair, sentences
from recipe import Options, Outcome, Table, greedy_texts, read_text, run_recipe

from yunque.cli.show import bars, note
from yunque.data.instructions import InstructionRow, write_instructions
from yunque.errors import UserError
from yunque.evaluate.metrics import bleu
from yunque.generate.engine import Engine
from yunque.model import plan_model
from yunque.tokenizer import Tokenizer, tokenizer_of
from yunque.tokenizer.training import train_tokenizer
from yunque.train import TuneSettings, plan_tuning, tune, tuning_rows
from yunque.train.settings import OptimizerSettings
from yunque.train.shapes import ModelSettings, NewModelSettings, make_model
from yunque.workspace import Artifact, Workspace, atomic_write

TRAIN, TEST = 12_000, 400
SECONDS = 120
_ROUNDS = 3
# The Transformer reads and writes so many tokens.
CONTEXT = 128
TRANSFORMER = ModelSettings(family="transformer", hidden_size=96, layers=2, context=CONTEXT, dropout=0.0)
RECURRENT = {
    "LSTM": ModelSettings(family="rnn-seq2seq", attention=False, layers=1),
    "LSTM with attention": ModelSettings(family="rnn-seq2seq", attention=True, layers=1),
}
# Sizes that a recurrent network may have, to find the one with as many parameters as the Transformer.
_SIZES = range(32, 513, 4)
_LONGEST_WORDS = 40
_RESAMPLES = 100
_BATCH = 64


def _read_pairs(path: Path) -> list[Pair]:
    """Pairs of a file with English and Spanish in the first two columns, divided by tabs, or in those that its first
    line calls `en` and `es`; each English once. Of a folder all files .tsv and .txt are read."""
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in (".tsv", ".txt"))
    found: dict[str, Pair] = {}
    for file in files:
        lines = read_text(file).split("\n")
        names = lines[0].lower().split("\t")
        named = "en" in names and "es" in names
        english, spanish = (names.index("en"), names.index("es")) if named else (0, 1)
        for line in lines[1:] if named else lines:
            columns = [column.strip() for column in line.split("\t")]
            if len(columns) > max(english, spanish) and columns[english] and columns[spanish]:
                pair = Pair(columns[english], columns[spanish])
                if pair.words <= _LONGEST_WORDS:
                    found.setdefault(pair.english, pair)
    if len(found) < 10 * _BATCH:
        raise UserError(f"--data: {path} has {len(found)} pairs divided by a tab: too few to learn from")
    pairs = list(found.values())
    random.Random(1).shuffle(pairs)
    return pairs


def _row(number: int, pair: Pair) -> InstructionRow:
    return InstructionRow(f"pair-{number}", "translation", "es", "plain", pair.english, "", pair.spanish)


def _fitting(pairs: Sequence[Pair], tokenizer: Tokenizer) -> list[Pair]:
    """Those that the Transformer can read and write; the others learn from the same."""
    return [
        pair
        for pair in pairs
        if len(tokenizer.encode_prompt(pair.english)) <= CONTEXT > len(tokenizer.encode(pair.spanish))
    ]


def _equal_in_size(settings: ModelSettings, workspace: Workspace, tokenizer: Artifact) -> ModelSettings:
    """These settings with the hidden size that comes nearest to the Transformer's number of parameters."""
    opened = tokenizer_of(workspace, tokenizer)

    def parameters(size: int) -> int:
        shape = settings.model_copy(update={"hidden_size": size})
        return plan_model(shape.configuration(opened)).parameters

    wanted = plan_model(TRANSFORMER.configuration(opened)).parameters
    # Wider is larger, so that the place can be found by halving.
    place = min(max(bisect(_SIZES, wanted, key=parameters), 1), len(_SIZES) - 1)
    size = min(_SIZES[place - 1], _SIZES[place], key=lambda size: abs(parameters(size) - wanted))
    return settings.model_copy(update={"hidden_size": size})


def _fresh(workspace: Workspace, name: str, shape: ModelSettings, tokenizer: Artifact) -> Artifact:
    """A model that has learned nothing yet."""
    named = f"{name.lower().replace(' ', '-')}-new"
    return make_model(workspace, NewModelSettings(name=named, tokenizer=tokenizer.ref, model=shape))


def _settings(options: Options, family: str, epochs: float) -> TuneSettings:
    rate = 2e-3 if family == "transformer" else 4e-3
    return TuneSettings(
        optimizer=OptimizerSettings(learning_rate=rate, weight_decay=0.01),
        epochs=epochs,
        batch_size=8 if options.quick else _BATCH,
        replay=0,
        precision="float32",
    )


def _step_seconds(
    options: Options, fresh: Mapping[str, Artifact], shapes: Mapping[str, ModelSettings], data: Artifact
) -> dict[str, float]:
    """Seconds of a step of each model: the least of some measurements that take turns, so that what else the machine
    does slows none of them alone. They are kept: a run that goes on has as many steps."""
    kept = options.workspace.root / "step_seconds.json"
    if kept.exists():
        found: dict[str, float] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    rows, least = [tuning_rows(options.workspace, data)], dict.fromkeys(fresh, float("inf"))
    for _ in range(1 if options.quick else _ROUNDS):
        for name, model in fresh.items():
            settings = _settings(options, shapes[name].family, 1.0)
            plan = plan_tuning(options.workspace, model.ref, rows, settings)
            least[name] = min(least[name], plan.step_seconds)
    atomic_write(kept, json.dumps(least))
    return least


def _translations(workspace: Workspace, model: Artifact, test: Sequence[Pair], most: int) -> list[str]:
    engine = Engine.open(workspace, model.ref)
    return greedy_texts(engine, [engine.tokenizer.encode_prompt(pair.english) for pair in test], most)


def _interval(written: Sequence[str], wanted: Sequence[str]) -> tuple[float, float]:
    """The 95 % bootstrap interval of BLEU over sentences."""
    generator = np.random.default_rng(0)
    scores = []
    for _ in range(_RESAMPLES):
        drawn = generator.integers(len(wanted), size=len(wanted))
        scores.append(bleu([written[n] for n in drawn], [wanted[n] for n in drawn]))
    low, high = np.quantile(scores, [0.025, 0.975])
    return float(low), float(high)


def _quarters(test: Sequence[Pair]) -> list[list[int]]:
    """The numbers of the test sentences in four parts, from the shortest to the longest."""
    order = sorted(range(len(test)), key=lambda number: test[number].words)
    edges = [len(order) * part // 4 for part in range(5)]
    return [order[low:high] for low, high in pairwise(edges)]


def experiment(options: Options) -> Outcome:
    """Train three models in equal time, and measure what they translate by length."""
    workspace = options.workspace
    pairs = (
        _read_pairs(options.data)
        if options.data
        else sentences(240 if options.quick else TRAIN + TEST, seed=1)
    )
    held_out = 8 if options.quick else TEST
    test, learned = pairs[:held_out], pairs[held_out:]
    data = write_instructions(workspace, "pairs", {"train": [_row(*pair) for pair in enumerate(learned)]})
    tokenizer = train_tokenizer(workspace, "pieces", [data.ref], 2048 if options.data else 1024)
    shapes = {name: _equal_in_size(shape, workspace, tokenizer) for name, shape in RECURRENT.items()}
    shapes["Transformer"] = TRANSFORMER
    test, fitting = (_fitting(some, tokenizer_of(workspace, tokenizer)) for some in (test, learned))
    if len(fitting) < len(learned):
        note(f"{len(learned) - len(fitting):,} pairs of more than {CONTEXT} tokens are left out")
        learned = fitting
        rows_that_fit = [_row(*pair) for pair in enumerate(learned)]
        data = write_instructions(workspace, "pairs-that-fit", {"train": rows_that_fit})
    quarters = _quarters(test)
    fresh = {name: _fresh(workspace, name, shape, tokenizer) for name, shape in shapes.items()}
    seconds = _step_seconds(options, fresh, shapes, data)
    rows, best = [], dict[str, float]()
    for name, shape in shapes.items():
        steps = options.steps(round(SECONDS / seconds[name]))
        batch = 8 if options.quick else _BATCH
        settings = _settings(options, shape.family, steps / -(-len(learned) // batch))
        model = tune(workspace, fresh[name].ref, [tuning_rows(workspace, data)], settings, bars)
        written = _translations(workspace, model, test, 8 if options.quick else 96)
        wanted = [pair.spanish for pair in test]
        low, high = _interval(written, wanted)
        best[name] = bleu(written, wanted)
        parts = [bleu([written[n] for n in chosen], [wanted[n] for n in chosen]) for chosen in quarters]
        figures = model.figures
        rows.append(
            [
                name,
                f"{figures['parameters']:,}",
                f"{1000 * seconds[name]:.0f}",
                f"{figures['steps']:,}",
                f"{best[name]:.1f} ({low:.1f} to {high:.1f})",
                *(f"{part:.1f}" for part in parts),
            ]
        )
    columns = (
        "model",
        "parameters",
        "ms a step",
        "steps",
        "BLEU (95 % interval)",
        *("shortest quarter", "second", "third", "longest quarter"),
    )
    lengths = ", ".join(f"{test[part[0]].words} to {test[part[-1]].words}" for part in quarters)
    title = f"BLEU on {len(test)} sentences that were not trained on; their quarters have {lengths} words"
    winner = max(best, key=lambda name: best[name])
    return Outcome(
        [Table(title, columns, rows)], [f"The best in equal time: {winner}, BLEU {best[winner]:.1f}."]
    )


if __name__ == "__main__":
    run_recipe(
        "translation", __doc__, experiment, "pairs of English and Spanish, a line each, divided by a tab"
    )
