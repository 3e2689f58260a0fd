"""Seconds to the first token: of a lone request, and of one that comes while 15 others are written.

    python benchmarks/first_token.py [--threads 2] [--rounds 9] [--prompt 256]

The model has SmolLM2-135M's shape, random weights, INT8. Each round measures both, one after the other, with prompts
that nobody asked before; medians and their ratio are printed. Last, all 16 come at once: their prompts are computed
one after the other, so the last waits for all of them.
"""

import argparse
import os
import statistics
import time
from collections.abc import Iterator

import torch
from engine import QUICK, SHAPE

from yunque.generate.config import GenerationConfig
from yunque.generate.engine import Engine
from yunque.generate.step import Step
from yunque.model import Llama, LlamaConfig, quantize_model
from yunque.tokenizer import Tokenizer

OTHERS = 15


def begun(engine: Engine, seed: int, length: int, fresh: int) -> Iterator[Step]:
    """A request with a prompt of its own."""
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randint(10, 250, (length,), generator=generator).tolist()
    return engine.stream(prompt, GenerationConfig(max_new_tokens=fresh, ignore_end=True))


def first_token(engine: Engine, seed: int, length: int) -> float:
    """Seconds until a request has its first token."""
    begin = time.perf_counter()
    next(begun(engine, seed, length, 1))
    return time.perf_counter() - begin


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--quick", action="store_true", help="a tiny model: shows that it works")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    tokenizer = Tokenizer.train(["uno dos tres"] * 3, 280)
    config = LlamaConfig(**(QUICK if given.quick else SHAPE))
    model = Llama(config, torch.Generator().manual_seed(0)).eval().requires_grad_(False)
    engine = Engine(quantize_model(model, "int8"), tokenizer, "bench")
    first_token(engine, 0, given.prompt)
    alone, among = list[float](), list[float]()
    for number in range(given.rounds):
        alone.append(first_token(engine, 1 + 100 * number, given.prompt))
        others = [begun(engine, 2 + 100 * number + other, 16, 1500) for other in range(OTHERS)]
        for other in others:
            next(other)
        among.append(first_token(engine, 99 + 100 * number, given.prompt))
        for other in others:
            other.close()  # type: ignore[attr-defined]  # Steps can be closed
        while engine.load.running:
            time.sleep(0.001)
    begin = time.perf_counter()
    together = [begun(engine, 10**6 + other, given.prompt, 1) for other in range(OTHERS + 1)]
    at_once = []
    for one in together:
        next(one)
        at_once.append(time.perf_counter() - begin)
    lone, busy = statistics.median(alone), statistics.median(among)
    print(f"{given.threads} threads, load {os.getloadavg()[0]:.1f}, prompts of {given.prompt} tokens")
    print(f"alone                  {1000 * lone:8.1f} ms")
    print(f"while 15 are written   {1000 * busy:8.1f} ms  {busy / lone:5.2f}x")
    print(f"16 at once, the first  {1000 * at_once[0]:8.1f} ms  {at_once[0] / lone:5.2f}x")
    print(f"            the last   {1000 * at_once[-1]:8.1f} ms  {at_once[-1] / lone:5.2f}x")
    engine.close()


if __name__ == "__main__":
    main()
