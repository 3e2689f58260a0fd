"""Bits against numpy, torch and struct: the same number must have the same bits in every format."""

import math
import random
import struct
from fractions import Fraction

import numpy as np
import pytest
import torch

from yunque.errors import UserError
from yunque.lab.bits import (
    BF16,
    FORMATS,
    FP8_E4M3,
    FP8_E5M2,
    FP16,
    FP32,
    FloatFormat,
    Held,
    encode,
    encode_int8,
    exactly,
    read_number,
)

_TORCH = {
    FP32: (torch.float32, torch.int32),
    FP16: (torch.float16, torch.int16),
    BF16: (torch.bfloat16, torch.int16),
    FP8_E5M2: (torch.float8_e5m2, torch.uint8),
    FP8_E4M3: (torch.float8_e4m3fn, torch.uint8),
}


def bits_of(held: Held) -> int:
    return int(held.sign + held.exponent + held.fraction, 2)


def theirs(value: float, format: FloatFormat) -> int:
    """The bits that torch has for a float32."""
    to, as_integer = _TORCH[format]
    made = torch.tensor([value], dtype=torch.float32).to(to).view(as_integer)
    return int(made.item()) & ((1 << format.bits) - 1)


def awkward_floats() -> list[float]:
    """Float32 numbers: ordinary ones, subnormal ones, ties, limits, signs."""
    draw = random.Random(7)
    found = [struct.unpack("<f", struct.pack("<I", draw.getrandbits(32)))[0] for _ in range(4000)]
    found += [draw.gauss(0, 1) for _ in range(1000)]
    for format in FORMATS:
        smallest = 2.0 ** (1 - format.bias - format.fraction_bits)
        found += [smallest * step / 4 for step in range(16)]
        top = 2.0**format.bias
        found += [top * (1 + step / 64) for step in range(64)] + [-top * 1.9999]
        # Exactly half way between two neighbours, and a hair beside it.
        for unit in range(8):
            tie = (1 << format.fraction_bits) + unit + 0.5
            found += [tie, np.nextafter(np.float32(tie), np.float32(0)), -tie]
    found += [0.0, -0.0, math.inf, -math.inf, 65504.0, 65519.0, 65520.0, 464.0, 465.0, 448.0]
    as_float32 = [float(np.float32(value)) for value in found if abs(value) < 3.4e38 or math.isinf(value)]
    return [value for value in as_float32 if not math.isnan(value)]


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_the_bits_are_those_of_torch(format: FloatFormat) -> None:
    wrong = []
    for value in awkward_floats():
        # Versions of torch do not agree on what stands past the largest number of E4M3.
        if format is FP8_E4M3 and abs(value) > 464:
            continue
        ours = bits_of(encode(exactly(value), format))
        if ours != theirs(value, format):
            wrong.append((value, hex(ours), hex(theirs(value, format))))
    assert not wrong, wrong[:5]


def test_rounding_down_instead_of_to_even_would_be_seen() -> None:
    """Negative control: cutting the float32's bits off, as careless BF16 code does, is not what we do."""
    cut = [struct.unpack("<I", struct.pack("<f", value))[0] >> 16 for value in awkward_floats()]
    with pytest.raises(AssertionError):
        assert cut == [bits_of(encode(exactly(value), BF16)) for value in awkward_floats()]


@pytest.mark.parametrize("to, format", [(np.float32, FP32), (np.float16, FP16)])
def test_a_double_is_rounded_once_like_numpy(to: type, format: FloatFormat) -> None:
    draw = random.Random(3)
    integer = {32: np.uint32, 16: np.uint16}[format.bits]
    with np.errstate(over="ignore", under="ignore"):
        for _ in range(3000):
            value = draw.choice([-1, 1]) * 10 ** draw.uniform(-48, 40)
            assert bits_of(encode(exactly(value), format)) == int(np.array(value, to).view(integer))


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_the_value_and_its_error_are_exact(format: FloatFormat) -> None:
    for value in awkward_floats()[:1500]:
        held = encode(exactly(value), format)
        if held.saturated:
            continue
        back = float(torch.tensor([value]).to(_TORCH[format][0]).to(torch.float64))
        if held.value is None:
            assert not math.isfinite(back)
            continue
        assert held.value == Fraction(back)
        assert held.error == abs(Fraction(back) - Fraction(value))
        assert held.step is not None
        assert held.error <= held.step / 2


def test_pi_is_as_in_the_classroom() -> None:
    number = read_number("3.141592")
    fields = [(h.sign, h.exponent, h.fraction) for h in (encode(number, f) for f in (FP32, FP16, BF16))]
    assert fields == [
        ("0", "10000000", "10010010000111111011000"),
        ("0", "10000", "1001001000"),
        ("0", "10000000", "1001001"),
    ]


def test_a_typed_number_is_rounded_once_not_twice() -> None:
    """Just above a tie of FP16: read as a double first it would become the tie, and go down to even."""
    text = "1.00048828125" + "0" * 30 + "1"
    assert float(text) == 1.00048828125
    assert encode(read_number(text), FP16).fraction == "0000000001"
    assert encode(exactly(float(text)), FP16).fraction == "0000000000"


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_signs_of_zero_and_nan(format: FloatFormat) -> None:
    assert encode(read_number("-0"), format).sign == "1"
    assert encode(read_number("0"), format).what == "zero"
    assert encode(read_number("-0.0"), format).as_dict()["value"] == 0.0
    assert math.copysign(1, encode(read_number("-0"), format).as_dict()["value"]) == -1  # type: ignore[arg-type]
    nan = encode(read_number("nan"), format)
    assert (nan.what, nan.value, nan.error) == ("nan", None, None)
    integer = bits_of(nan)
    made = torch.tensor([integer], dtype=torch.int64).to(_TORCH[format][1]).view(_TORCH[format][0])
    assert torch.isnan(made.float()).item()


def test_past_the_largest_number_is_infinity_or_the_largest() -> None:
    assert encode(read_number("65519.9"), FP16).value == 65504
    over = encode(read_number("-65520"), FP16)
    assert (over.what, over.sign, over.error, over.saturated) == ("infinity", "1", None, False)
    assert encode(read_number("1e300"), FP32).what == "infinity"
    assert encode(read_number("464"), FP8_E4M3).saturated is False
    beyond = encode(read_number("-500"), FP8_E4M3)
    assert (beyond.value, beyond.error, beyond.saturated, beyond.step) == (-448, 52, True, 32)
    assert encode(read_number("inf"), FP8_E4M3).what == "nan"


@pytest.mark.parametrize(
    "text, value",
    [
        ("3,141592", Fraction(3141592, 10**6)),
        ("−2.5", Fraction(-5, 2)),
        ("+1e-3", Fraction(1, 1000)),
        ("1/3", Fraction(1, 3)),
        (" .5 ", Fraction(1, 2)),
        ("5.", Fraction(5)),
        ("1E2", Fraction(100)),
        ("0e99999", Fraction(0)),
    ],
)
def test_numbers_as_people_write_them(text: str, value: Fraction) -> None:
    assert read_number(text).value == value


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "tres", "1.2.3", "1,234.5", "1_000", "٣", "0x10", "--1", "1/0", "1/", "e5", ".",
        "1e999999999", "1e-999999999", "1e99999999999999999999999", "1" * 500, "9" * 301 + "/1", "infinito",
    ],
)  # fmt: skip
def test_what_is_not_a_number_is_told_in_one_sentence(text: str) -> None:
    with pytest.raises(UserError) as told:
        read_number(text)
    assert "\n" not in str(told.value)


def test_int8_is_a_scale_and_a_whole_number() -> None:
    held = encode_int8(read_number("3.141592"))
    assert held is not None
    assert held.scale == Fraction(4, 127)
    assert held.integer == 100
    assert held.sign + held.fraction == f"{100:08b}"
    assert held.value == Fraction(400, 127)
    negative = encode_int8(read_number("-1"), read_number("4"))
    assert negative is not None
    assert int(negative.sign + negative.fraction, 2) == np.array(negative.integer, np.int8).view(np.uint8)


def test_int8_is_what_quantization_does() -> None:
    draw = torch.randn(512, generator=torch.Generator().manual_seed(0))
    largest = exactly(float(draw.abs().max()))
    expected = torch.round(draw.double() / (draw.double().abs().max() / 127)).tolist()
    ours = [encode_int8(exactly(float(value)), largest) for value in draw]
    assert [held and held.integer for held in ours] == expected
    # Negative control: another scale gives other numbers.
    other = [encode_int8(exactly(float(value)), read_number("9")) for value in draw]
    assert [held and held.integer for held in other] != expected


def test_int8_beyond_its_range_saturates_and_says_so() -> None:
    held = encode_int8(read_number("-10"), read_number("4"))
    assert held is not None
    assert (held.integer, held.saturated, held.error) == (-127, True, 6)
    assert encode_int8(read_number("inf")) is None
    zero = encode_int8(read_number("0"))
    assert zero is not None
    assert zero.value == 0
    for wrong in ("0", "-1", "nan"):
        with pytest.raises(UserError, match="above 0"):
            encode_int8(read_number("1"), read_number(wrong))
