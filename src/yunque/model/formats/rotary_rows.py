"""Rows of query and key matrices: pairs of neighbours, as Meta and GGUF keep them, or halves, as Hugging Face does.

Rotary positions turn two numbers of a head together. Both orders give the same scores, each with its own rotation.
"""

from torch import Tensor


def halves_from_pairs(rows: Tensor, num_heads: int) -> Tensor:
    """Hugging Face's order of the rows of a matrix or bias: number i of a head turns with number i + H/2."""
    paired = rows.reshape(num_heads, rows.shape[0] // num_heads // 2, 2, *rows.shape[1:])
    return paired.transpose(1, 2).reshape(rows.shape)


def pairs_from_halves(rows: Tensor, num_heads: int) -> Tensor:
    """Meta's order: number 2i of a head turns with number 2i + 1."""
    halved = rows.reshape(num_heads, 2, rows.shape[0] // num_heads // 2, *rows.shape[1:])
    return halved.transpose(1, 2).reshape(rows.shape)
