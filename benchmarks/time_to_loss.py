"""How soon a loss is reached: Hugging Face's Trainer with AdamW, and `yunque`'s loop, on the same data.

    python benchmarks/time_to_loss.py [--data FILE] [--rates 0.001 0.002 0.004] [--tokens 409600] [--threads 2]

Both train a Llama of 10 million parameters (`--small`: 4 million) with the same tokenizer, learned from the text, and
are measured on the same held-out windows. Trainer reads 16 windows of 256 tokens a step, warms up and falls along a
cosine, at each of `--rates`; the loss to reach is the lowest that it ends with. Ours is told in `Ours` below. Trainer
with batches and initial weights like ours (`--like-ours`) shows how much of the difference is the optimizer's.

Without `--data` the text is Python's documentation. They take turns in processes of their own (see turns.py), and
measuring the loss is not timed. Needs `transformers` and `accelerate`.
"""

import itertools
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from turns import Gate, Program, parser_of, race, run_worker

from yunque.data.python_docs import find_modules, read_module
from yunque.model import Llama, LlamaConfig
from yunque.tokenizer import Tokenizer
from yunque.train.corpus import Corpus
from yunque.train.loop import train_step
from yunque.train.objectives.next_token import NextToken
from yunque.train.optimizer import make_optimizer
from yunque.train.settings import OptimizerSettings, Precision

LENGTH, VOCABULARY, TURNS, HELD_OUT = 256, 4096, 10, 48
MUON = OptimizerSettings(kind="muon", learning_rate=3e-3, schedule="trapezoid", final_share=0.0)


@dataclass(frozen=True)
class Ours:
    """What we do; see docs/speed.md for what each part gave. `share` is of the tokens that Trainer reads."""

    batch: int = 4
    share: float = 0.3
    optimizer: OptimizerSettings = MUON


@dataclass(frozen=True)
class Schedule:
    """How many steps there are."""

    steps: int
    threads: int
    precision: Precision = "float32"


def documents(path: Path | None) -> list[str]:
    """The pieces of a file that blank lines divide, or of Python's documentation."""
    if path is not None:
        return path.read_text(encoding="utf-8").split("\n\n")
    found = []
    for module in find_modules():
        try:
            found += [piece.text for _, piece in read_module(module).pieces]
        except SyntaxError:
            continue
    return found


def encode(path: Path | None) -> dict[str, Tensor]:
    """Ids to learn from, and ids to measure on: of every 20 pieces one."""
    pieces = documents(path)
    held_out = "\n\n".join(pieces[::20])
    training = "\n\n".join(piece for number, piece in enumerate(pieces) if number % 20)
    tokenizer = Tokenizer.train([training], VOCABULARY)
    encoded = tokenizer.encode_batch([training, held_out])
    ids = [torch.tensor(one, dtype=torch.int64) for one in encoded]
    return {"training": ids[0], "held_out": ids[1], "end": torch.tensor(tokenizer.end_id)}


def configuration(small: bool, deviation: float | None) -> LlamaConfig:
    """The model's; `deviation` of its first weights, or what `yunque train` takes."""
    hidden, layers = (256, 4) if small else (320, 7)
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=27 * hidden // 10,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        max_position_embeddings=LENGTH,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        initializer_range=hidden**-0.5 if deviation is None else deviation,
    )


@torch.inference_mode()
def held_out_loss(scores_of: Any, ids: Tensor) -> float:
    """Mean loss a token on the first windows of `ids`."""
    windows = min(HELD_OUT, (len(ids) - 1) // LENGTH)
    inputs = ids[: windows * LENGTH].view(-1, LENGTH)
    targets = ids[1 : windows * LENGTH + 1].view(-1, LENGTH)
    pairs = zip(inputs.split(8), targets.split(8), strict=True)
    return sum(
        F.cross_entropy(scores_of(some).flatten(0, 1), wanted.flatten(), reduction="sum").item()
        for some, wanted in pairs
    ) / (windows * LENGTH)


def ours(gate: Gate, data: dict[str, Tensor], way: Ours, config: LlamaConfig, schedule: Schedule) -> None:
    """Our model, objective, optimizer and step."""
    model = Llama(config, torch.Generator().manual_seed(0))
    corpus = Corpus([data["training"].tolist()], [("text", "0")], int(data["end"]), LENGTH, 0)
    objective = NextToken(corpus, None, way.batch, way.batch)
    optimizer = make_optimizer(model, way.optimizer)
    for step in range(schedule.steps):
        train_step(model, optimizer, objective, way.optimizer, schedule, step)
        gate.tick(lambda: {"loss": held_out_loss(model, data["held_out"])})


class Windows(torch.utils.data.Dataset):
    """The same windows in the same order, as Trainer reads them: labels are the inputs, and the model shifts them."""

    def __init__(self, data: dict[str, Tensor]) -> None:
        ids = data["training"].tolist()
        self._corpus = Corpus([ids], [("text", "0")], int(data["end"]), LENGTH, 0)

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        ids = self._corpus.windows(number, 1).input_ids[0]
        return {"input_ids": ids, "labels": ids}


def trainer(
    gate: Gate, data: dict[str, Tensor], rate: float, batch: int, config: LlamaConfig, schedule: Schedule
) -> None:
    """transformers' model and Trainer with AdamW."""
    import transformers

    class AtTheGate(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, model: Any, **__: Any) -> None:
            def tell() -> dict[str, float]:
                model.eval()
                loss = held_out_loss(lambda ids: model(ids).logits, data["held_out"])
                model.train()
                return {"loss": loss}

            gate.tick(tell)

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *_: Any, **__: Any) -> Iterator[int]:
            return itertools.count()

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=batch,
            max_steps=schedule.steps,
            learning_rate=rate,
            lr_scheduler_type="cosine",
            warmup_steps=max(1, schedule.steps // 20),
            adam_beta2=0.95,
            weight_decay=0.1,
            max_grad_norm=1.0,
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=0,
        )
        fields = config.model_dump(exclude_none=True, exclude={"model_type"})
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields))
        InOrder(model, arguments, train_dataset=Windows(data), callbacks=[AtTheGate()]).train()


def work(given: Any) -> None:
    """Be one of the programs: "ours", "Trainer RATE", or "Trainer like ours RATE"."""
    torch.set_num_threads(given.threads)
    data, way = torch.load(given.ids), Ours()
    kind, _, rate = given.worker.rpartition(" ")
    if not kind:
        schedule = Schedule(turned(way.share * given.tokens, way.batch), given.threads)
        config = configuration(given.small, None)
        run_worker(lambda gate: ours(gate, data, way, config, schedule), schedule.steps // TURNS)
        return
    batch, deviation = (16, 0.02) if kind == "Trainer" else (way.batch, None)
    schedule = Schedule(turned(given.tokens, batch), given.threads)
    config = configuration(given.small, deviation)
    run_worker(
        lambda gate: trainer(gate, data, float(rate), batch, config, schedule), schedule.steps // TURNS
    )


def turned(tokens: float, batch: int) -> int:
    """Steps for so many tokens, the same number in each turn."""
    return max(1, round(tokens / (batch * LENGTH * TURNS))) * TURNS


def main() -> None:
    """Print the loss at the end of each, and the times."""
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, help="a text; blank lines divide its pieces")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.001, 0.002, 0.004])
    parser.add_argument("--like-ours", type=float, nargs="*", default=[], metavar="RATE")
    parser.add_argument("--tokens", type=float, default=409_600, help="that Trainer reads")
    parser.add_argument("--small", action="store_true", help="4 million parameters")
    parser.add_argument("--ids", type=Path, help="where the ids of the text are kept for another time")
    given = parser.parse_args()
    if given.worker:
        work(given)
        return
    with tempfile.TemporaryDirectory() as folder:
        ids = given.ids or Path(folder) / "ids.pt"
        if not ids.exists():
            torch.save(encode(given.data), ids)
        names = [*(f"Trainer {rate}" for rate in given.rates), "ours"]
        names += [f"Trainer like ours {rate}" for rate in given.like_ours]
        arguments = [*sys.argv[1:], "--ids", str(ids)]
        arguments += ["--small", "--tokens", "40000"] if given.quick else []
        programs = [Program(name, __file__, arguments, given.threads) for name in names]
        finishes = race(programs, TURNS)
    best = min(finishes[: len(given.rates)], key=lambda done: done.loss)
    print(f"{given.threads} threads, load {os.getloadavg()[0]:.1f}; the loss to reach is {best.loss:.4f}")
    for done, program in zip(finishes, programs, strict=True):
        reached = itertools.accumulate(
            program.slices, lambda sums, one: (sums[0] + one.wall, sums[1] + one.cpu), initial=(0.0, 0.0)
        )
        times = [
            sums
            for sums, one in zip(itertools.islice(reached, 1, None), program.slices, strict=True)
            if one.told["loss"] <= best.loss
        ]
        when = (
            f"reached after {times[0][0]:6.1f} s ({best.wall / times[0][0]:4.2f}x as soon), "
            f"CPU time {times[0][1]:6.1f} s ({best.cpu / times[0][1]:4.2f}x)"
            if times
            else "not reached"
        )
        print(f"{done.name:26} loss {done.loss:.4f} in {done.wall:6.1f} s ({done.cpu:6.1f} CPU); {when}")


if __name__ == "__main__":
    main()
