"""Loss as a sum of powers of the model's size and the data's: L(N, D) = E + A / N^a + B / D^b.

Hoffmann et al. 2022, "Training Compute-Optimal Large Language Models" (arXiv:2203.15556), section 3.3
and appendix D.3.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

# The paper's: beyond this, a residual of log L counts by its size and not by its square.
_HUBER = 1e-3
# Where the search begins, in every combination: log E, log A, log B, a, b.
_STARTS = ((-1.0, 0.5), (1.0, 5.0), (1.0, 5.0), (0.2, 0.8), (0.2, 0.8))
_BOUNDS = ((-5.0, 3.0), (-5.0, 40.0), (-5.0, 40.0), (0.01, 3.0), (0.01, 3.0))


@dataclass(frozen=True)
class Point:
    """A model that was trained: its parameters, the tokens it read, and its loss on text that it did not."""

    parameters: float
    tokens: float
    loss: float

    @property
    def flops(self) -> float:
        """About what its training took: 6 a parameter and token."""
        return 6 * self.parameters * self.tokens


@dataclass(frozen=True)
class PowerLaw:
    """L(N, D) = E + A / N^a + B / D^b, in nats a token."""

    E: float
    A: float
    B: float
    a: float
    b: float

    def loss(self, parameters: float, tokens: float) -> float:
        """The loss that a model of this size is expected to have after so many tokens."""
        return float(self.E + self.A / parameters**self.a + self.B / tokens**self.b)

    def optimal(self, flops: float) -> tuple[float, float]:
        """Parameters and tokens with the least loss for a budget of 6 * parameters * tokens (equation 4)."""
        together = self.a + self.b
        scale = (self.a * self.A / (self.b * self.B)) ** (1 / together)
        parameters = scale * (flops / 6) ** (self.b / together)
        return parameters, flops / 6 / parameters


Floats = npt.NDArray[np.float64]


def _misfit(x: Floats, log_n: Floats, log_d: Floats, log_loss: Floats) -> tuple[float, Floats]:
    """Summed Huber loss of log L over the points, in units of `_HUBER` squared, and its gradient."""
    terms = np.stack([np.full_like(log_n, x[0]), x[1] - x[3] * log_n, x[2] - x[4] * log_d])
    predicted = np.logaddexp.reduce(terms)
    shares = np.exp(terms - predicted)
    r = (predicted - log_loss) / _HUBER
    value = np.where(np.abs(r) <= 1, r**2 / 2, np.abs(r) - 0.5).sum()
    slope = np.clip(r, -1, 1) / _HUBER
    each = [*shares, -shares[1] * log_n, -shares[2] * log_d]
    return float(value), np.array([(slope * one).sum() for one in each])


def fit(points: Sequence[Point], start: PowerLaw | None = None) -> PowerLaw:
    """The law nearest to the points, from many starts, or from one law alone."""
    log_n, log_d, log_loss = (
        np.log([getattr(point, name) for point in points]) for name in ("parameters", "tokens", "loss")
    )
    if start is None:
        starts = np.stack([grid.ravel() for grid in np.meshgrid(*_STARTS)], axis=1)
    else:
        starts = np.array([[*map(math.log, (start.E, start.A, start.B)), start.a, start.b]])
    best, least = starts[0], math.inf
    for x in starts:
        found = minimize(
            _misfit,
            x,
            (log_n, log_d, log_loss),
            jac=True,
            method="L-BFGS-B",
            bounds=_BOUNDS,
            options={"maxiter": 2000, "ftol": 1e-12, "gtol": 1e-9},
        )
        if found.fun < least:
            best, least = found.x, found.fun
    return PowerLaw(*np.exp(best[:3]).tolist(), *best[3:].tolist())


def intervals(
    points: Sequence[Point], law: PowerLaw, resamples: int = 200, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % intervals of E, a and b: the law fitted to points drawn again, with repetition (bootstrap)."""
    generator = np.random.default_rng(seed)
    laws = [
        fit([points[number] for number in generator.integers(len(points), size=len(points))], law)
        for _ in range(resamples)
    ]
    low_high = {name: np.quantile([getattr(one, name) for one in laws], [0.025, 0.975]) for name in "Eab"}
    return {name: (float(low), float(high)) for name, (low, high) in low_high.items()}
