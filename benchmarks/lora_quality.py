"""What adapters cost in quality: a small model tuned on sentences with a sentiment, in the ways of lora.py."""

import csv
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from lora import Schedule, make_trainable, ways
from torch import Tensor

from yunque.model import CausalModel, LanguageModel
from yunque.model.checkpoint import build_model
from yunque.model.opening import open_checkpoint
from yunque.tokenizer import Tokenizer
from yunque.train.loop import train_step
from yunque.train.objective import Part, PartLoss
from yunque.train.optimizer import make_optimizer
from yunque.train.settings import OptimizerSettings

TRAINING, TESTED, EPOCHS, BATCH = 1000, 872, 4, 16
RATES = (1e-3, 3e-3, 1e-2)


@dataclass(frozen=True)
class Sentence:
    """Ids of a sentence, and whether it is a kind one."""

    ids: list[int]
    label: int


def read(path: Path, tokenizer: Tokenizer, count: int) -> list[Sentence]:
    """`count` sentences of a file of SST-2, always the same ones."""
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    random.Random(0).shuffle(rows)
    asked = ((f"{row['sentence'].strip()} It was", int(row["label"])) for row in rows[:count])
    return [Sentence(tokenizer.encode_prompt(text), label) for text, label in asked]


@dataclass(frozen=True)
class Sentiment:
    """The next word after a sentence, of two."""

    sentences: Sequence[Sentence]
    words: tuple[int, int]
    seed: int

    def parts(self, model: LanguageModel, step: int) -> Sequence[Part]:
        """The sentences of a step."""
        del model
        epoch, place = divmod(step, len(self.sentences) // BATCH)
        order = list(range(len(self.sentences)))
        random.Random(1000 * self.seed + epoch).shuffle(order)
        some = [self.sentences[number] for number in order[place * BATCH : (place + 1) * BATCH]]
        return [Part(some, len(some), sum(len(one.ids) for one in some))]

    def scores(self, model: LanguageModel, some: Sequence[Sentence]) -> Tensor:
        """How likely each word is after each sentence, [B, V]."""
        assert isinstance(model, CausalModel)
        longest = max(len(one.ids) for one in some)
        ids = torch.tensor([one.ids + [0] * (longest - len(one.ids)) for one in some])
        last = torch.tensor([len(one.ids) - 1 for one in some])
        return model.logits(model.hidden(ids)[torch.arange(len(some)), last])

    def loss(self, model: LanguageModel, part: Part) -> PartLoss:
        """The mean over sentences."""
        targets = torch.tensor([self.words[one.label] for one in part.batch])
        return PartLoss(F.cross_entropy(self.scores(model, part.batch), targets))

    def validation_loss(self, model: LanguageModel) -> float | None:
        """None: accuracy is counted after the last step."""
        del model
        return None

    @torch.inference_mode()
    def accuracy(self, model: LanguageModel, sentences: Sequence[Sentence]) -> float:
        """The share of sentences after which the right word is likelier than the other."""
        right = 0
        for start in range(0, len(sentences), 64):
            some = sentences[start : start + 64]
            pair = self.scores(model, some)[:, list(self.words)]
            right += sum(
                int(one.label == best) for one, best in zip(some, pair.argmax(1).tolist(), strict=True)
            )
        return right / len(sentences)


def measure_quality(base: Path, tokenizer_path: Path | None, sst2: Path, seeds: int, quick: bool) -> None:
    """Print the accuracy of each way at its best rate, the mean over seeds.

    Sentences to choose the rate by are others than those that accuracy is told on.
    """
    found = open_checkpoint(base, tokenizer_path)
    assert found.tokenizer is not None, "the model needs a tokenizer"
    good, bad = (found.tokenizer.encode(f" {word}")[0] for word in ("great", "bad"))
    training = read(sst2 / "train.tsv", found.tokenizer, 4 * BATCH if quick else TRAINING)
    choosing = read(sst2 / "dev.tsv", found.tokenizer, 64 if quick else TESTED)
    testing = read(sst2 / "test.tsv", found.tokenizer, 64 if quick else 2 * TESTED)
    steps = (1 if quick else EPOCHS) * len(training) // BATCH
    for name, way in ways(found.configuration.num_layers).items():
        figures: dict[float, list[tuple[float, float]]] = {}
        begin = time.process_time()
        for rate in RATES[:1] if quick else RATES:
            figures[rate] = []
            for seed in range(1 if quick else seeds):
                model = build_model(found.configuration, found.source, torch.float32, CausalModel)
                make_trainable(model, way)
                objective = Sentiment(training, (bad, good), seed)
                settings = OptimizerSettings(learning_rate=rate)
                optimizer = make_optimizer(model, settings)
                for step in range(steps):
                    train_step(model, optimizer, objective, settings, Schedule(steps), step)
                figures[rate].append(
                    (objective.accuracy(model, choosing), objective.accuracy(model, testing))
                )
        rate, best = max(figures.items(), key=lambda item: statistics.mean(pair[0] for pair in item[1]))
        tested = [pair[1] for pair in best]
        spread = statistics.stdev(tested) if len(tested) > 1 else 0.0
        print(
            f"{name:24} accuracy {statistics.mean(tested):6.1%} (deviation {spread:5.1%} over {len(tested)} seeds), "
            f"rate {rate:g}, {time.process_time() - begin:.0f} CPU seconds for all rates",
            flush=True,
        )
