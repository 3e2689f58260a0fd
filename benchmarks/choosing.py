"""What it costs to choose a token from the scores of a vocabulary, in microseconds, on one thread.

    python benchmarks/choosing.py [--vocabulary 49152] [--rounds 300]

Scores are normal, three wide (some thousands of tokens hold 90 % of the probability) or eight wide (a few do, as of a
trained model). Told are the median and the least of the rounds.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from yunque.generate.config import GenerationConfig
from yunque.generate.sampler import Sampler

WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "greedy, 5 log-probabilities": {"temperature": 0.0, "logprobs": 5},
    "greedy, penalties": {"temperature": 0.0, "repetition_penalty": 1.1, "presence_penalty": 0.5},
    "temperature": {},
    "top_k 50, top_p 0.9": {"top_k": 50, "top_p": 0.9},
    "top_k 50, top_p 0.9, penalties": {
        "top_k": 50,
        "top_p": 0.9,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
    },
    "top_p 0.9": {"top_p": 0.9},
    "min_p 0.05": {"min_p": 0.05},
    "typical_p 0.9": {"typical_p": 0.9},
}


def timed(work: Callable[[int], object], rounds: int) -> tuple[float, float]:
    """Median and least, in microseconds."""
    times = []
    for number in range(rounds + 10):
        begun = time.perf_counter()
        work(number)
        times.append(1e6 * (time.perf_counter() - begun))
    return statistics.median(times[10:]), min(times[10:])


def measure(vocabulary: int, rounds: int, width: float) -> dict[str, tuple[float, float]]:
    """The times of each way."""
    rows_BV = torch.randn(16, vocabulary, generator=torch.Generator().manual_seed(0)) * width
    never, prompt = torch.arange(5), [token % vocabulary for token in range(0, 7000, 7)]
    found = {}
    for name, fields in WAYS.items():
        config = GenerationConfig(**{"temperature": 0.8, "seed": 1, **fields})
        sampler = Sampler(config, prompt, vocabulary, never)
        found[name] = timed(lambda number, sampler=sampler: sampler.choose(rows_BV[number % 16]), rounds)
    return found


def main() -> None:
    """A line for each way."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--rounds", type=int, default=300)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        wide, narrow = (measure(given.vocabulary, given.rounds, width) for width in (3.0, 8.0))
    print(f"{'microseconds (median, least)':32} {'3 wide':>14} {'8 wide':>14}")
    for name, times in wide.items():
        told = [f"{median:.0f}, {least:.0f}" for median, least in (times, narrow[name])]
        print(f"{name:32} {told[0]:>14} {told[1]:>14}")


if __name__ == "__main__":
    main()
