"""One number in the formats that models are kept in: its bits, the value they stand for, and what was lost.

All arithmetic is exact (fractions), so the error shown is that of the format and of nothing else.
"""

import math
import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Literal

from yunque.errors import UserError

What = Literal["normal", "subnormal", "zero", "infinity", "nan", "integer"]


@dataclass(frozen=True)
class FloatFormat:
    """A binary floating-point format: one sign bit, then exponent, then fraction (IEEE 754-2019, section 3.4).

    Without `has_infinity` the highest exponent holds numbers too and only all ones is no number: FP8 E4M3
    (Micikevicius et al. 2022, arXiv:2209.05433).
    """

    name: str
    exponent_bits: int
    fraction_bits: int
    has_infinity: bool = True

    @property
    def bias(self) -> int:
        """What is taken off the stored exponent."""
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def bits(self) -> int:
        """Bits of one number."""
        return 1 + self.exponent_bits + self.fraction_bits

    @property
    def _all_ones(self) -> int:
        return (1 << (self.exponent_bits + self.fraction_bits)) - 1

    @property
    def _infinity(self) -> int:
        return self._all_ones - (1 << self.fraction_bits) + 1

    @property
    def _largest(self) -> int:
        return (self._infinity if self.has_infinity else self._all_ones) - 1


FP32 = FloatFormat("FP32", 8, 23)
FP16 = FloatFormat("FP16", 5, 10)
BF16 = FloatFormat("BF16", 8, 7)
FP8_E5M2 = FloatFormat("FP8 E5M2", 5, 2)
FP8_E4M3 = FloatFormat("FP8 E4M3", 4, 3, has_infinity=False)
FORMATS = (FP32, FP16, BF16, FP8_E5M2, FP8_E4M3)


@dataclass(frozen=True)
class Number:
    """A number as it was written, exactly; `magnitude` is None for infinity and for what is no number (nan)."""

    negative: bool
    magnitude: Fraction | None
    is_nan: bool = False

    @property
    def value(self) -> Fraction | None:
        """The number with its sign, None where it has no value."""
        return self.magnitude if self.magnitude is None or not self.negative else -self.magnitude


@dataclass(frozen=True)
class Held:
    """What a format makes of a number.

    The bits of each field are text of 0 and 1. `value` is exact and None for infinity and nan; `step` is the
    distance to the next larger number of the format; `error` is |value - number|, `relative_error` is that over
    |number|; each is None where it does not exist. `scale` is that of INT8, whose value is integer x scale.
    """

    format: str
    sign: str
    exponent: str
    fraction: str
    what: What
    value: Fraction | None
    step: Fraction | None
    error: Fraction | None
    relative_error: Fraction | None
    integer: int | None = None
    scale: Fraction | None = None
    saturated: bool = False

    @property
    def hexadecimal(self) -> str:
        """The bits in hexadecimal."""
        bits = self.sign + self.exponent + self.fraction
        return f"0x{int(bits, 2):0{len(bits) // 4}x}"

    def as_dict(self) -> dict[str, object]:
        """Everything about it for JSON; numbers that do not exist are None."""
        facts: dict[str, object] = {
            "format": self.format,
            "bits": len(self.sign + self.exponent + self.fraction),
            "sign": self.sign,
            "exponent": self.exponent,
            "fraction": self.fraction,
            "hexadecimal": self.hexadecimal,
            "what": self.what,
            "value": _float(self.value, negative=self.sign == "1"),
            "step": _float(self.step),
            "error": _float(self.error),
            "relative_error": _float(self.relative_error),
        }
        if self.scale is not None:
            facts |= {"integer": self.integer, "scale": _float(self.scale), "saturated": self.saturated}
        return facts


_LARGEST, _SMALLEST, _LONGEST = 300, -400, 400


def read_number(text: str) -> Number:
    """The number that `text` writes: 3.141592, 3,141592 (decimal comma), 6.02e23, 1/3, -0, inf, nan.

    Raises UserError for anything else, and for numbers past 1e300, which no format here comes near.
    """
    written = text.strip().replace("\u2212", "-")
    if not written:
        raise UserError("the number is empty: write one such as 3.141592")
    if len(written) > _LONGEST:
        raise UserError(f"the number has {len(written)} characters: at most {_LONGEST} are read")
    name = re.fullmatch(r"([+-]?)(inf(?:inity)?|nan)", written, re.IGNORECASE)
    if name:
        return Number(name[1] == "-", None, is_nan=name[2].lower() == "nan")
    ratio = re.fullmatch(r"([+-]?[0-9]+)/([0-9]+)", written)
    if ratio:
        if not int(ratio[2]):
            raise UserError(f"{text!r} divides by zero: write inf or nan for what has no value")
        magnitude = abs(Fraction(int(ratio[1]), int(ratio[2])))
        if magnitude > 10**_LARGEST:
            raise UserError(f"{text!r} is too large: 1e{_LARGEST} is the largest number here")
        return Number(written.startswith("-"), magnitude)
    if not re.fullmatch(r"[+-]?([0-9]+[.,]?[0-9]*|[.,][0-9]+)(e[+-]?[0-9]+)?", written, re.IGNORECASE):
        raise UserError(
            f"{text!r} is not a number: write one such as 3.141592, -2.5, 6.02e23, 1/3, inf or nan"
        )
    try:
        decimal = Decimal(written.replace(",", "."))
    except InvalidOperation:  # an exponent of very many digits
        raise UserError(
            f"{text!r} has too large an exponent: 1e{_LARGEST} is the largest number here"
        ) from None
    # Checked before the fraction is made: 1e999999999 written out would fill the memory.
    if decimal and decimal.adjusted() > _LARGEST:
        raise UserError(f"{text!r} is too large: 1e{_LARGEST} is the largest number here")
    if decimal and decimal.adjusted() < _SMALLEST:
        raise UserError(f"{text!r} is too small: 1e{_SMALLEST} is the smallest number here")
    return Number(written.startswith("-"), abs(Fraction(decimal)) if decimal else Fraction(0))


def exactly(value: float) -> Number:
    """A Python float as a Number."""
    negative = math.copysign(1.0, value) < 0
    finite = Fraction(value) if math.isfinite(value) else None
    return Number(negative, None if finite is None else abs(finite), is_nan=math.isnan(value))


def encode(number: Number, format: FloatFormat) -> Held:
    """`number` in `format`, rounded to the nearest value it has, ties to the even one (IEEE 754 section 4.3.1).

    Past the largest number stands infinity; a format without infinity stays at its largest number (`saturated`), as
    torch does.
    """
    sign = "1" if number.negative else "0"
    if number.magnitude is None:
        return _special(number.is_nan or not format.has_infinity, format, sign, not number.is_nan)
    power = _power_of_two(number.magnitude, format)
    step = Fraction(2) ** (power - format.fraction_bits)
    units = round(number.magnitude / step)
    # Fraction and exponent are one integer: rounding up past all ones carries into the exponent, as it should.
    code = ((power - (1 - format.bias)) << format.fraction_bits) + units
    saturated = code > format._largest
    if saturated and format.has_infinity:
        return _special(False, format, sign)
    if saturated:
        code, units = format._largest, (2 << format.fraction_bits) - 2
        step = Fraction(2) ** (format.bias + 1 - format.fraction_bits)
    value = -units * step if number.negative else units * step
    exponent, fraction = _fields(code, format)
    what: What = "zero" if not code else "normal" if int(exponent, 2) else "subnormal"
    if units == 2 << format.fraction_bits:
        step *= 2
    return Held(
        format.name, sign, exponent, fraction, what, value, step, *_errors(value, number), saturated=saturated
    )


def _power_of_two(magnitude: Fraction, format: FloatFormat) -> int:
    """The exponent of a magnitude, never below the one that subnormal numbers share."""
    if not magnitude:
        return 1 - format.bias
    power = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** power > magnitude:
        power -= 1
    return max(power, 1 - format.bias)


def _fields(code: int, format: FloatFormat) -> tuple[str, str]:
    bits = f"{code:0{format.bits - 1}b}"
    return bits[: format.exponent_bits], bits[format.exponent_bits :]


def _special(is_nan: bool, format: FloatFormat, sign: str, was_infinity: bool = False) -> Held:
    """Infinity or nan. An infinity that was one before is kept without error."""
    quiet = format._infinity | 1 << (format.fraction_bits - 1) if format.has_infinity else format._all_ones
    exponent, fraction = _fields(quiet if is_nan else format._infinity, format)
    what: What = "nan" if is_nan else "infinity"
    kept = was_infinity and not is_nan
    return Held(format.name, sign, exponent, fraction, what, None, None, Fraction(0) if kept else None, None)


def _errors(value: Fraction, number: Number) -> tuple[Fraction | None, Fraction | None]:
    if number.value is None:
        return None, None
    error = abs(value - number.value)
    return error, error / abs(number.value) if number.value else None


def encode_int8(number: Number, largest: Number | None = None) -> Held | None:
    """`number` as a whole number from -127 to 127 times a scale, as symmetric quantization keeps weights.

    The scale is `largest` / 127, where `largest` is the largest magnitude of the numbers that share the scale
    (a row of a matrix); without it, the smallest power of two that is not below `number`. A number beyond
    `largest` becomes +-127 (`saturated`). None for infinity and nan, which INT8 cannot hold.
    """
    if number.value is None or number.magnitude is None:
        return None
    top = _next_power_of_two(number.magnitude) if number.magnitude else Fraction(1)
    if largest is not None:
        if not largest.value or largest.value < 0:
            raise UserError("the largest magnitude that INT8 is to cover must be a number above 0")
        top = largest.value
    scale = top / 127
    integer = max(-127, min(127, round(number.value / scale)))
    saturated = number.magnitude > top
    bits = f"{integer & 0xFF:08b}"
    value = integer * scale
    error, relative = _errors(value, number)
    # Two's complement: the first bit is the sign, the rest is no exponent.
    return Held(
        "INT8", bits[0], "", bits[1:], "integer", value, scale, error, relative, integer, scale, saturated
    )


def _next_power_of_two(magnitude: Fraction) -> Fraction:
    power = magnitude.numerator.bit_length() - magnitude.denominator.bit_length() - 1
    while Fraction(2) ** power < magnitude:
        power += 1
    return Fraction(2) ** power


def every_format(number: Number, largest: Number | None = None) -> list[Held]:
    """`number` in every float format of FORMATS, and in INT8 where it can hold it."""
    integer = encode_int8(number, largest)
    return [encode(number, format) for format in FORMATS] + ([integer] if integer else [])


def as_formula(held: Held) -> str:
    """How the bits make the value: `+1.5707960 x 2^(128 - 127)`, or INT8's integer x scale."""
    if held.integer is not None and held.scale is not None:
        return f"{held.integer} x {_float(held.scale):.6g}"
    if held.what in ("infinity", "nan"):
        return "all exponent bits are 1" if held.format != FP8_E4M3.name else "all bits are 1"
    format = next(one for one in FORMATS if one.name == held.format)
    sign, exponent = "-" if held.sign == "1" else "+", int(held.exponent, 2)
    ahead = 1 if exponent else 0
    mantissa = ahead + Fraction(int(held.fraction, 2), 1 << format.fraction_bits)
    digits = f"{float(mantissa):.{min(format.fraction_bits, 7)}f}"
    return f"{sign}{digits} x 2^({max(exponent, 1)} - {format.bias})"


def told_value(held: Held) -> str:
    """The value for a person, at most nine digits."""
    sign = "-" if held.sign == "1" else ""
    if held.value is None:
        return held.what if held.what == "nan" else f"{sign}infinity"
    return f"{_float(held.value, negative=bool(sign)):.9g}"


def told_error(held: Held) -> str:
    """The error for a person, and what is special about the number."""
    if held.error is None:
        return "past its largest number" if held.what == "infinity" else "no value, no error"
    if not held.error:
        return "exact"
    told = f"error {_float(held.error):.3g}"
    if held.saturated:
        return f"{told}: past its largest number"
    if held.what == "zero":
        return f"{told}: below its smallest number"
    if held.relative_error is not None:
        told += f" ({100 * float(held.relative_error):.2g} %)"
    return f"{told}, subnormal" if held.what == "subnormal" else told


def _float(value: Fraction | None, negative: bool = False) -> float | None:
    if value is None:
        return None
    if not value and negative:
        return -0.0
    try:
        return float(value)
    except OverflowError:
        return None
