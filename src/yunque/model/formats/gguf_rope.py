"""Llama 3.1's scaling of rotary positions: GGUF keeps a table of factors, `config.json` the numbers that make it."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from yunque.model.positions import Rope

Floats = npt.NDArray[np.float32]

# Only the ratios of context and thresholds follow from a table. These are the ones that every Llama 3 has.
_CONTEXT, _LOW, _HIGH = 8192, 1.0, 4.0


def factors_of(rope: Rope, head_dim: int) -> Floats:
    """By what each of the head_dim / 2 frequencies is divided (Grattafiori et al. 2024, arXiv:2407.21783)."""
    context = rope.original_max_position_embeddings or _CONTEXT
    plain, _ = Rope(rope_theta=rope.rope_theta).frequencies(head_dim, context, context)
    scaled, _ = rope.frequencies(head_dim, context, context)
    factors: Floats = (plain.double() / scaled.double()).float().numpy()
    return factors


def scaling_of_factors(factors: Floats, theta: float) -> dict[str, Any] | None:
    """The `rope_scaling` that has these factors, or None where they are of another kind."""
    factor = float(factors.max())
    if not np.isfinite(factors).all() or factors.min() < 0.5 or factor <= 1.0:
        return None
    thresholds = [(_LOW, _HIGH)]
    # Between the thresholds the share of the unscaled frequency grows along a line with the turns in a context.
    exponents = np.arange(len(factors), dtype=np.float64) / len(factors)
    turns = theta**-exponents * _CONTEXT / (2 * math.pi)
    between = (factors > 1.0 + 1e-5) & (factors < factor * (1.0 - 1e-5))
    if between.sum() >= 2:
        shares = (1.0 / factors[between] - 1.0 / factor) / (1.0 - 1.0 / factor)
        slope, start = np.polyfit(turns[between], shares, 1)
        # Both are above 0, or these are not the factors of such a scaling.
        if start < 0 < slope:
            thresholds.append((float(-start / slope), float((1.0 - start) / slope)))
    for low, high in thresholds:
        found = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": _CONTEXT,
        }
        rope = Rope.model_validate({**found, "rope_theta": theta})
        if low < high and np.allclose(factors_of(rope, 2 * len(factors)), factors, rtol=1e-3):
            return found
    return None
