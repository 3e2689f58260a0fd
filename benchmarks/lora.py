"""LoRA beside full tuning: tokens a second, peak memory, and what it costs in quality.

    python benchmarks/lora.py [--threads 2] [--rounds 5] [--quick]
    python benchmarks/lora.py --quality --base stories260K.bin --tokenizer tok512.bin --sst2 FOLDER

Of 6 operations a weight and token that full tuning takes (2 forward, 2 for the gradient of what is multiplied, 2 for
the weight's own), LoRA on every matrix saves the last 2: at most 1.5 times the speed. Layers below the first adapted
one take 2, and keep nothing for the backward pass: with the last half adapted it is at most 2 times, with the last
third 2.25. Ways take turns in processes of their own (see turns.py). The memory of a way is the most that its process
had, Python and torch among it; `above` is what it had more than before its model was made.

The second form tunes a small model on sentences with a sentiment (SST-2, train.tsv and test.tsv), and counts by which
word the model finds likelier.
"""

import os
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from turns import Gate, Program, parser_of, peak_bytes, run_worker

from yunque.model import CausalModel, Llama, LlamaConfig, plan_model
from yunque.model.lora import LoraSettings, add_lora
from yunque.train.corpus import Corpus
from yunque.train.loop import train_step
from yunque.train.objectives.next_token import NextToken
from yunque.train.optimizer import make_optimizer
from yunque.train.settings import OptimizerSettings, Precision


@dataclass(frozen=True)
class Shape:
    """A model, and what it reads in a step."""

    hidden: int = 512
    layers: int = 12
    vocabulary: int = 8192
    batch: int = 8
    length: int = 128

    @property
    def config(self) -> LlamaConfig:
        """The model's configuration."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=43 * self.hidden // 16,
            num_hidden_layers=self.layers,
            num_attention_heads=self.hidden // 64,
            max_position_embeddings=self.length,
            tie_word_embeddings=True,
        )


@dataclass(frozen=True)
class Schedule:
    """Steps at one rate."""

    steps: int = 10**6
    precision: Precision = "float32"
    threads: int = 1


SHAPE, TINY = Shape(), Shape(hidden=64, layers=3, vocabulary=256, batch=2, length=16)


def ways(layers: int) -> dict[str, LoraSettings | None]:
    """What is compared, by name; None is full tuning."""
    half, third = -(-layers // 2), -(-layers // 3)
    return {
        "full": None,
        "attention": LoraSettings(targets="attention"),
        "all-linear": LoraSettings(targets="all-linear"),
        "attention, last half": LoraSettings(targets="attention", last_layers=half),
        "all-linear, last half": LoraSettings(targets="all-linear", last_layers=half),
        "attention, last third": LoraSettings(targets="attention", last_layers=third),
        "all-linear, last third": LoraSettings(targets="all-linear", last_layers=third),
    }


def make_trainable(model: CausalModel, way: LoraSettings | None) -> None:
    """Free all weights, or put an adapter on."""
    if way is None:
        model.requires_grad_(True)
    else:
        add_lora(model, way, torch.Generator().manual_seed(0))


def work(gate: Gate, shape: Shape, way: LoraSettings | None) -> None:
    """Tune one way, on random tokens."""
    before = peak_bytes()
    model = Llama(shape.config, torch.Generator().manual_seed(0))
    make_trainable(model, way)
    settings = OptimizerSettings(learning_rate=1e-3)
    tokens = shape.batch * shape.length
    document = torch.randint(1, shape.vocabulary, (64 * tokens,), generator=torch.Generator().manual_seed(0))
    corpus = Corpus([document.tolist()], [("random", "0")], 0, shape.length, 0)
    objective = NextToken(corpus, None, shape.batch, shape.batch)
    optimizer = make_optimizer(model, settings)
    for step in range(10**6):
        train_step(model, optimizer, objective, settings, Schedule(), step)
        gate.tick(lambda: {"above": peak_bytes() - before})


def compare(shape: Shape, threads: int, rounds: int, steps: int) -> None:
    """Print the table of speeds and memory."""
    names = list(ways(shape.layers))
    programs = [Program(name, __file__, sys.argv[1:], threads) for name in names]
    for _ in range(rounds + 1):
        for program in programs:
            program.turn()
    peaks = [program.end() for program in programs]
    plan, base = plan_model(shape.config), programs[0]
    print(
        f"{plan.parameters / 1e6:.1f} million parameters, {shape.batch} x {shape.length} tokens a step, float32, "
        f"{threads} threads, load {os.getloadavg()[0]:.1f}"
    )
    for program, peak in zip(programs, peaks, strict=True):
        pairs = list(zip(base.slices[1:], program.slices[1:], strict=True))
        wall = statistics.median(full.wall / mine.wall for full, mine in pairs)
        cpu = statistics.median(full.cpu / mine.cpu for full, mine in pairs)
        above, most = (one.slices[-1].told["above"] for one in (program, base))
        print(
            f"{program.name:24} {steps * shape.batch * shape.length / program.median('wall'):8,.0f} tokens/s "
            f"{wall:5.2f}x (by CPU time {cpu:5.2f}x)  peak {peak / 1e6:6.0f} MB {peak / peaks[0]:5.2f}x  "
            f"above {above / 1e6:6.0f} MB {above / most:5.2f}x"
        )


def main() -> None:
    """Print a table of ways."""
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=1, help="steps of a turn")
    parser.add_argument("--quality", action="store_true", help="measure accuracy instead of speed")
    parser.add_argument("--base", type=Path, help="with --quality: the model to tune")
    parser.add_argument("--tokenizer", type=Path, help="with --quality: its tokenizer, where it is elsewhere")
    parser.add_argument("--sst2", type=Path, help="with --quality: the folder of train.tsv and test.tsv")
    parser.add_argument("--seeds", type=int, default=3, help="with --quality: runs of each way")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.quality:
        from lora_quality import measure_quality

        if given.base is None or given.sst2 is None:
            parser.error("--quality needs --base and --sst2")
        measure_quality(given.base, given.tokenizer, given.sst2, given.seeds, given.quick)
        return
    shape = TINY if given.quick else SHAPE
    if given.worker:
        run_worker(lambda gate: work(gate, shape, ways(shape.layers)[given.worker]), given.steps)
    else:
        compare(shape, given.threads, given.rounds, given.steps)


if __name__ == "__main__":
    main()
