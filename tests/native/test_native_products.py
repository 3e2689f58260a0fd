"""Products in C++: exact in whole numbers, and the same for a row whatever rows are computed beside it."""

import ctypes

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from yunque.generate.native_runner import matrix_weights
from yunque.model.quantized_layers import Int4Matrix, Int8Matrix, quantize_rows
from yunque.native.library import FLOAT32, Weights, multiply

SHAPES = [(1, 2), (5, 7), (16, 16), (33, 100), (50, 129), (64, 576), (48, 1536)]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def int8(rows: int, columns: int) -> Int8Matrix:
    matrix = Int8Matrix(rows, columns)
    matrix.fill(numbers(rows, columns))
    return matrix


def int4(rows: int, columns: int, group_size: int) -> Int4Matrix:
    matrix = Int4Matrix(rows, columns, group_size)
    matrix.fill(numbers(rows, columns))
    return matrix


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 3, 8, 21])
def test_int8_products_are_those_of_torch_to_the_bit(
    library: ctypes.CDLL, shape: tuple[int, int], tokens: int
) -> None:
    matrix, x_TI = int8(*shape), numbers(tokens, shape[1], seed=1)
    given = multiply(library, matrix_weights(matrix), x_TI)
    assert torch.equal(given, matrix.multiply(x_TI))
    with pytest.raises(AssertionError):  # negative control: what is multiplied was rounded
        assert torch.equal(given, x_TI @ matrix.dense().t())


def test_the_largest_sums_are_exact(library: ctypes.CDLL) -> None:
    matrix, columns = Int8Matrix(32, 4096), 4096
    # Neighbours of one sign are what instructions that add in 16 bits get wrong.
    signs_O1 = torch.where(torch.arange(32) % 2 == 0, 1, -1)[:, None]
    matrix.values = (127 * signs_O1.expand(-1, columns)).to(torch.int8).contiguous()
    matrix.scales = torch.ones(32)
    x_TI = torch.ones(9, columns)
    x_TI[1::2] = -1
    given = multiply(library, matrix_weights(matrix), x_TI * 127)
    exact_TO = x_TI[:, :1] * signs_O1.t() * float(127 * 127 * columns)
    assert torch.equal(given, exact_TO)


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int4_products_are_those_of_torch(
    library: ctypes.CDLL, shape: tuple[int, int], group_size: int
) -> None:
    matrix, x_TI = int4(*shape, group_size), numbers(11, shape[1], seed=1)
    given = multiply(library, matrix_weights(matrix), x_TI)
    assert_close(given, matrix.multiply(x_TI), rtol=1e-4, atol=1e-4)
    # In double precision what both are near to.
    whole_TI, scales_T1 = quantize_rows(x_TI)
    exact_TO = (whole_TI.double() * scales_T1) @ matrix.dense().double().t()
    assert_close(given.double(), exact_TO, rtol=1e-5, atol=1e-5)
    with pytest.raises(AssertionError):  # negative control: what is multiplied was rounded
        assert_close(given, x_TI @ matrix.dense().t(), rtol=1e-4, atol=1e-4)


def test_the_largest_int4_sums_are_exact(library: ctypes.CDLL) -> None:
    matrix = int4(16, 1024, 128)
    matrix.packed.fill_(0x77)  # each number is 7
    matrix.scales.fill_(1.0)
    matrix.centers.fill_(8.0)
    given = multiply(library, matrix_weights(matrix), torch.full((3, 1024), 127.0))
    assert torch.equal(given, torch.full((3, 16), 127.0 * 15 * 1024))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float_products_are_those_of_torch(library: ctypes.CDLL, shape: tuple[int, int]) -> None:
    weight_OI, x_TI = numbers(*shape), numbers(6, shape[1], seed=1)
    given = multiply(library, Weights(FLOAT32, shape, weight_OI), x_TI)
    assert_close(given, x_TI @ weight_OI.t(), rtol=1e-4, atol=1e-4)
    with pytest.raises(AssertionError):  # negative control
        assert_close(given, x_TI.roll(1, 1) @ weight_OI.t(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["int8", "int4", "float32"])
def test_a_row_is_the_same_to_the_bit_whatever_is_beside_it(library: ctypes.CDLL, kind: str) -> None:
    shape = (70, 201)
    weights = {
        "int8": lambda: matrix_weights(int8(*shape)),
        "int4": lambda: matrix_weights(int4(*shape, 64)),
        "float32": lambda: Weights(FLOAT32, shape, numbers(*shape)),
    }[kind]()
    x_TI = numbers(23, shape[1], seed=2) * torch.logspace(-3, 3, 23)[:, None]
    together = multiply(library, weights, x_TI)
    for begin, end in ((0, 1), (7, 8), (3, 5), (0, 9), (10, 23)):
        assert torch.equal(multiply(library, weights, x_TI[begin:end]), together[begin:end])


def test_numbers_that_are_none_are_not_hidden_and_zeros_stay_zeros(library: ctypes.CDLL) -> None:
    x_TI = numbers(3, 64)
    x_TI[1, 5] = float("nan")
    x_TI[2] = 0
    for weights in (matrix_weights(int8(20, 64)), matrix_weights(int4(20, 64, 32))):
        product_TO = multiply(library, weights, x_TI)
        assert product_TO[0].isfinite().all() and product_TO[1].isnan().all()
        assert torch.equal(product_TO[2], torch.zeros(20))
