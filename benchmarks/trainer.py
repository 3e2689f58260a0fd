"""What the training loop costs: ours, a bare PyTorch loop on the same model, and Hugging Face's Trainer.

    python benchmarks/trainer.py [--threads 2] [--rounds 5] [--precision float32] [--quick]

A Llama of 10 million parameters, 16 windows of 256 tokens a step, AdamW, gradients clipped. The three take turns in
processes of their own (see turns.py). Ours is the real loop, with its log; `ours + checkpoints` also writes one every
five seconds, as `yunque train` does. The limit is the speed of torch's own matrix product. Needs `transformers` and
`accelerate`, which the package does not.
"""

import itertools
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from turns import Gate, Program, parser_of, run_worker

from yunque.model import Llama, LlamaConfig, plan_model
from yunque.train.corpus import Corpus
from yunque.train.loop import autocast, run_loop
from yunque.train.objectives.next_token import NextToken
from yunque.train.settings import LoopSettings, OptimizerSettings, Precision

NAMES = ("bare loop", "ours", "ours + checkpoints", "Trainer")
RATE = 1e-3
NEVER = 10**9


@dataclass(frozen=True)
class Shape:
    """A model, and what it reads in a step."""

    hidden: int = 320
    layers: int = 6
    vocabulary: int = 8192
    batch: int = 16
    length: int = 256

    @property
    def config(self) -> LlamaConfig:
        """The model's configuration."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=27 * self.hidden // 10,
            num_hidden_layers=self.layers,
            num_attention_heads=self.hidden // 64,
            max_position_embeddings=self.length,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
        )

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.batch * self.length


SHAPE, TINY = Shape(), Shape(hidden=64, layers=2, vocabulary=256, batch=2, length=32)


def corpus_of(shape: Shape) -> Corpus:
    """Random tokens: what they are does not change how long a step takes."""
    random = torch.Generator().manual_seed(0)
    document = torch.randint(1, shape.vocabulary, (64 * shape.tokens,), generator=random).tolist()
    return Corpus([document], [("random", "0")], 0, shape.length, 0)


class Turns:
    """Progress of a run that stops at the gate after each step."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def __call__(self, description: str, total: float | None = None) -> "Turns":
        del description, total
        return self

    def __enter__(self) -> "Turns":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def advance(self, amount: float = 1, note: str = "") -> None:
        """A step is done; the first call tells of none."""
        del amount
        if note:
            self._gate.tick()


@dataclass(frozen=True)
class Plan:
    """A schedule without an end; what it costs is measured from outside."""

    precision: Precision
    threads: int
    steps: int = NEVER
    flops_per_token: int = 1
    matmul_gflops: float = 1.0

    def as_dict(self) -> dict[str, Any]:
        """What a message about memory would quote."""
        return asdict(self)


def ours(gate: Gate, shape: Shape, plan: Plan, checkpoints: bool) -> None:
    """The package's loop."""
    settings = LoopSettings(
        optimizer=OptimizerSettings(learning_rate=RATE),
        checkpoint_every=50 if checkpoints else NEVER,
        checkpoint_seconds=5.0 if checkpoints else float(NEVER),
        validate_every=NEVER,
    )
    model = Llama(shape.config, torch.Generator().manual_seed(0))
    objective = NextToken(corpus_of(shape), None, shape.batch, shape.batch)
    with tempfile.TemporaryDirectory() as folder:
        run_loop(Path(folder), model, objective, settings, plan, Turns(gate), lambda _: None)


def bare(gate: Gate, shape: Shape, plan: Plan) -> None:
    """The least that trains the same model: no log, no masks between documents."""
    model = Llama(shape.config, torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), fused=True)
    corpus = corpus_of(shape)
    for step in itertools.count():
        windows = corpus.windows(step * shape.batch, shape.batch)
        with autocast(model, plan.precision):
            scores = model(windows.input_ids)
            loss = F.cross_entropy(scores.float().flatten(0, 1), windows.targets.flatten())
        del scores
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        gate.tick()


class Windows(torch.utils.data.Dataset):
    """The corpus's windows, as Trainer reads them: labels are the inputs, and the model shifts them."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus

    def __len__(self) -> int:
        return NEVER

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        ids = self._corpus.windows(number, 1).input_ids[0]
        return {"input_ids": ids, "labels": ids}


def trainer(gate: Gate, shape: Shape, plan: Plan) -> None:
    """transformers' model and Trainer, as its documentation has them; nothing is saved or evaluated."""
    import transformers

    class AtTheGate(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            gate.tick()

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *_: Any, **__: Any) -> Iterator[int]:
            return itertools.count()  # a permutation of a list without an end would never be ready

    fields = shape.config.model_dump(exclude_none=True, exclude={"model_type"})
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=shape.batch,
            max_steps=1_000_000,
            learning_rate=RATE,
            adam_beta2=0.95,
            weight_decay=0.1,
            max_grad_norm=1.0,
            bf16=plan.precision == "bfloat16",
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_steps=100,
        )
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields))
        InOrder(model, arguments, train_dataset=Windows(corpus_of(shape)), callbacks=[AtTheGate()]).train()


def work(name: str, shape: Shape, precision: Precision, threads: int, steps: int) -> None:
    """Be one of the programs."""
    torch.set_num_threads(threads)
    plan = Plan(precision, threads)
    programs = {
        "bare loop": lambda gate: bare(gate, shape, plan),
        "ours": lambda gate: ours(gate, shape, plan, checkpoints=False),
        "ours + checkpoints": lambda gate: ours(gate, shape, plan, checkpoints=True),
        "Trainer": lambda gate: trainer(gate, shape, plan),
    }
    run_worker(programs[name], steps)


def matmul_gflops(precision: Precision) -> float:
    """One measurement of torch's product of two matrices of 1024 x 1024, in GFLOP/s."""
    matrix = torch.ones(1024, 1024, dtype=getattr(torch, precision))
    begin = time.perf_counter()
    for _ in range(8):
        matrix @ matrix
    return 8 * 2 * 1024**3 / (time.perf_counter() - begin) / 1e9


def main() -> None:
    """Print the limit, and for each program tokens/s, GFLOP/s, and the ratios of time and memory to the bare loop."""
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=2, help="steps of a turn")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    given = parser.parse_args()
    shape = TINY if given.quick else SHAPE
    if given.worker:
        work(given.worker, shape, given.precision, given.threads, given.steps)
        return
    torch.set_num_threads(given.threads)
    arguments = [argument for argument in sys.argv[1:] if argument != "--json"]
    programs = [Program(name, __file__, arguments, given.threads) for name in NAMES]
    limits: list[float] = []
    for _ in range(given.rounds + 1):
        limits.append(matmul_gflops(given.precision))
        for program in programs:
            program.turn()
    peaks = [program.end() for program in programs]
    plan, limit = plan_model(shape.config), statistics.median(limits)
    flops = plan.training_flops_per_token
    print(
        f"{plan.parameters / 1e6:.2f} million parameters, {shape.batch} x {shape.length} tokens a step, "
        f"{flops / 1e6:.1f} MFLOP a token, {given.precision}, {given.threads} threads, load {os.getloadavg()[0]:.1f}"
    )
    print(f"torch's matrix product: {limit:.0f} GFLOP/s (median), {max(limits):.0f} at best")
    tokens = given.steps * shape.tokens
    base = programs[0]
    for program, peak in zip(programs, peaks, strict=True):
        speed = tokens / program.median("wall")
        pairs = zip(program.slices[1:], base.slices[1:], strict=True)
        ratios = [(mine.wall / bare.wall, mine.cpu / bare.cpu) for mine, bare in pairs]
        wall, cpu = (statistics.median(column) for column in zip(*ratios, strict=True))
        print(
            f"{program.name:20} {speed:9,.0f} tokens/s {speed * flops / 1e9:7.1f} GFLOP/s "
            f"({speed * flops / 1e9 / limit:4.0%} of the limit)  time {wall:5.3f}x, CPU time {cpu:5.3f}x  "
            f"peak memory {math.ceil(peak / 1e6):5} MB, {peak / peaks[0]:4.2f}x"
        )


if __name__ == "__main__":
    main()
