"""Shakespeare, character by character: nanoGPT's recipe for a CPU, and ours in less than half its time.

    python benchmarks/shakespeare.py --data tinyshakespeare/input.txt [--threads 2] [--quick]

The recipe (Karpathy, nanoGPT's README, "I only have a macbook"): a GPT of 4 layers, 4 heads and 128 numbers, windows
of 64 characters, 12 a step, 2000 steps of AdamW, no dropout. It is written here in plain PyTorch. Both read the first
nine tenths of the text and are measured on all of the last tenth, in nats a character, in windows as long as those
that they learned from. They take turns (see turns.py); measuring is not timed.
"""

import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from turns import Gate, Program, parser_of, race, run_worker

from yunque.model import Llama, LlamaConfig
from yunque.train.corpus import Corpus
from yunque.train.loop import train_step
from yunque.train.objectives.next_token import NextToken
from yunque.train.optimizer import make_optimizer
from yunque.train.settings import OptimizerSettings, Precision

TURNS = 20
LENGTH, WIDTH, LAYERS, HEADS, BATCH, STEPS = 64, 128, 4, 4, 12, 2000
SHARE = 0.9


@dataclass(frozen=True)
class Text:
    """Characters as numbers, those to learn from and those to be measured on; how many kinds there are."""

    training: Tensor
    validation: Tensor
    kinds: int

    @classmethod
    def read(cls, path: Path) -> "Text":
        """The text of a file. Number 0 is kept for the end of a document."""
        text = path.read_text(encoding="utf-8")
        numbers = {letter: number for number, letter in enumerate(sorted(set(text)), start=1)}
        ids = torch.tensor([numbers[letter] for letter in text])
        place = int(SHARE * len(ids))
        return cls(ids[:place], ids[place:], len(numbers) + 1)


class Layer(nn.Module):
    """A layer of GPT-2 without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH, bias=False)
        self.all_three = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.output = nn.Linear(WIDTH, WIDTH, bias=False)
        self.feed_forward_norm = nn.LayerNorm(WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] from [B, T, D]."""
        heads = self.all_three(self.attention_norm(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.output(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.feed_forward_norm(x))))


class RecipeModel(nn.Module):
    """The recipe's GPT: trained positions, and one table that reads and scores."""

    def __init__(self, kinds: int) -> None:
        super().__init__()
        self.table, self.positions = nn.Embedding(kinds, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.layers = nn.Sequential(*(Layer() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                last = name.endswith(("output.weight", "down.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * LAYERS) if last else 0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Scores [B, T, V] of the characters after `ids` [B, T]."""
        x = self.table(ids) + self.positions.weight[: ids.shape[1]]
        return F.linear(self.norm(self.layers(x)), self.table.weight)


@torch.inference_mode()
def validation_loss(scores_of: nn.Module, ids: Tensor, length: int) -> float:
    """Mean loss over all characters but the first, in windows of `length`."""
    windows = (len(ids) - 1) // length
    inputs, targets = ids[: windows * length].view(-1, length), ids[1 : windows * length + 1].view(-1, length)
    summed = 0.0
    for some, wanted in zip(inputs.split(128), targets.split(128), strict=True):
        summed += F.cross_entropy(scores_of(some).flatten(0, 1), wanted.flatten(), reduction="sum").item()
    return summed / targets.numel()


def recipe(gate: Gate, text: Text, steps: int) -> None:
    """nanoGPT's: AdamW at 1e-3 with 100 steps of warm-up, then a cosine to 1e-4."""
    torch.manual_seed(1337)
    model = RecipeModel(text.kinds)
    gains = [weight for weight in model.parameters() if weight.dim() < 2]
    matrices = [weight for weight in model.parameters() if weight.dim() == 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)
    for step in range(steps):
        done = (step - 100) / (2000 - 100)
        rate = 1e-3 * step / 100 if step < 100 else 1e-4 + 0.5 * (1 + math.cos(math.pi * done)) * 9e-4
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = torch.randint(len(text.training) - LENGTH - 1, (BATCH,))
        places = starts[:, None] + torch.arange(LENGTH)
        loss = F.cross_entropy(
            model(text.training[places]).flatten(0, 1), text.training[places + 1].flatten()
        )
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        gate.tick(lambda: {"loss": validation_loss(model, text.validation, LENGTH)})


@dataclass(frozen=True)
class Ours:
    """What we do instead; measured in docs/speed.md."""

    length: int = 64
    width: int = 128
    inner: int = 352
    layers: int = 4
    heads: int = 4
    batch: int = 12
    steps: int = 500
    kind: str = "muon"
    rate: float = 0.01
    decay: float = 0.4
    momentum: float = 0.95
    precision: Precision = "float32"


def ours(gate: Gate, text: Text, way: Ours) -> None:
    """Our model, objective, optimizer and step."""
    config = LlamaConfig(
        vocab_size=text.kinds,
        hidden_size=way.width,
        intermediate_size=way.inner,
        num_hidden_layers=way.layers,
        num_attention_heads=way.heads,
        max_position_embeddings=way.length,
        initializer_range=way.width**-0.5,
        tie_word_embeddings=True,
    )
    model = Llama(config, torch.Generator().manual_seed(0))
    settings = OptimizerSettings.model_validate(
        {
            "kind": way.kind,
            "learning_rate": way.rate,
            "schedule": "trapezoid",
            "decay_share": way.decay,
            "momentum": way.momentum,
            "final_share": 0.0,
        }
    )
    corpus = Corpus([text.training.tolist()], [("text", "0")], 0, way.length, 0)
    objective = NextToken(corpus, None, way.batch, way.batch)
    optimizer = make_optimizer(model, settings)
    for step in range(way.steps):
        train_step(model, optimizer, objective, settings, way, step)
        gate.tick(lambda: {"loss": validation_loss(model, text.validation, way.length)})


def main() -> None:
    """Print both losses, both times, and their ratio."""
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the text, a plain file")
    given = parser.parse_args()
    way = Ours(steps=40) if given.quick else Ours()
    steps = TURNS * 2 if given.quick else STEPS
    if given.worker:
        torch.set_num_threads(given.threads)
        text = Text.read(given.data)
        if given.worker == "recipe":
            run_worker(lambda gate: recipe(gate, text, steps), steps // TURNS)
        else:
            run_worker(lambda gate: ours(gate, text, way), way.steps // TURNS)
        return
    programs = [Program(name, __file__, sys.argv[1:], given.threads) for name in ("recipe", "ours")]
    finishes = race(programs, TURNS)
    base = finishes[0]
    print(f"{given.threads} threads, load {os.getloadavg()[0]:.1f}")
    for done in finishes:
        print(
            f"{done.name:8} loss {done.loss:.4f}  {done.wall:7.1f} s ({done.wall / base.wall:4.2f}x)  "
            f"CPU time {done.cpu:7.1f} s ({done.cpu / base.cpu:4.2f}x)"
        )


if __name__ == "__main__":
    main()
