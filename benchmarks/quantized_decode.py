"""How long a step of a quantized model takes, beside the float one: interleaved, medians, ratios.

    python benchmarks/quantized_decode.py [--threads 1] [--rounds 15]

The shape is SmolLM2-135M's with random weights: 30 layers, hidden size 576, 49,152 tokens. A step is one token after
32 in a cache, or 128 tokens at once.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from engine import SHAPE

from yunque.model import Llama, LlamaConfig, quantize_model

SMOLLM2 = LlamaConfig(**SHAPE)


def one_token(model: Llama) -> Callable[[], object]:
    """A step after 32 tokens in a cache that has room for many more."""
    cache = model.new_cache(1, 1024)
    model(torch.arange(32)[None], cache=cache)
    return lambda: model(torch.tensor([[7]]), cache=cache)


def many_tokens(model: Llama) -> Callable[[], object]:
    """A prompt of 128 tokens."""
    ids = torch.arange(128)[None]
    return lambda: model(ids)


@torch.inference_mode()
def main() -> None:
    """Print a table of medians in milliseconds and their ratio to float32."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    plain = Llama(SMOLLM2, torch.Generator().manual_seed(0)).eval().requires_grad_(False)
    models = {"float32": plain, **{kind: quantize_model(plain, kind) for kind in ("int8", "int4")}}
    for title, prepare in (("one token", one_token), ("128 tokens", many_tokens)):
        steps = {kind: prepare(model) for kind, model in models.items()}
        spent: dict[str, list[float]] = {kind: [] for kind in steps}
        for number in range(given.rounds + 1):
            for kind, step in steps.items():
                begin = time.perf_counter()
                step()
                if number:  # the first round warms up
                    spent[kind].append(time.perf_counter() - begin)
        base = statistics.median(spent["float32"])
        for kind, seconds in spent.items():
            median = statistics.median(seconds)
            print(f"{title:10}  {kind:8} {1000 * median:8.1f} ms  {median / base:5.2f}x")


if __name__ == "__main__":
    main()
