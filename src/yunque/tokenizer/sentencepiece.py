"""SentencePiece `.model` files, read without the library: a few fields of one protobuf message.

The format is `sentencepiece_model.proto` of google/sentencepiece; of its fields only those are read that change
what a text becomes.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from yunque.errors import UserError
from yunque.tokenizer.pieces import Piece, PieceType

_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
_KINDS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
_MOST_PIECES = 4_000_000
_Value = int | bytes


@dataclass(frozen=True)
class SentencePieceModel:
    """What a `.model` file says. Ids are -1 where the model has no such token."""

    pieces: list[Piece]
    kind: str
    unk_id: int
    bos_id: int
    eos_id: int
    pad_id: int
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool


class _Broken(Exception):
    """The bytes are not a protobuf message of this kind."""


def read_model(data: bytes) -> SentencePieceModel:
    """A SentencePiece model. Raises UserError for anything else, and for what it cannot be read as."""
    try:
        return _model(data)
    except _Broken as error:
        raise UserError(f"is not a SentencePiece model, or is cut off ({error})") from None


def _model(data: bytes) -> SentencePieceModel:
    pieces: list[Piece] = []
    trainer: dict[int, _Value] = {}
    normalizer: dict[int, _Value] = {}
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_piece(_bytes(value)))
            if len(pieces) > _MOST_PIECES:
                raise _Broken(f"more than {_MOST_PIECES:,} pieces")
        elif number == 2:
            trainer = dict(_fields(_bytes(value)))
        elif number == 3:
            normalizer = dict(_fields(_bytes(value)))
    if not pieces:
        raise _Broken("it has no pieces")
    if _number(trainer, 24, 0):
        raise UserError("writes the space behind words (treat_whitespace_as_suffix), which is not supported")
    if not _number(normalizer, 5, 1):
        raise UserError("does not write spaces as ▁ (escape_whitespaces off), which is not supported")
    kind = _KINDS.get(_number(trainer, 3, 1), "unknown")
    if kind not in ("unigram", "bpe"):
        raise UserError(f"is a SentencePiece model of the kind {kind}: only unigram and bpe are read")
    charsmap = _bytes(normalizer.get(2, b""))
    _check_charsmap(charsmap)
    return SentencePieceModel(
        pieces=pieces,
        kind=kind,
        unk_id=_signed(_number(trainer, 40, 0)),
        bos_id=_signed(_number(trainer, 41, 1)),
        eos_id=_signed(_number(trainer, 42, 2)),
        pad_id=_signed(_number(trainer, 43, -1)),
        charsmap=charsmap,
        add_dummy_prefix=bool(_number(normalizer, 3, 1)),
        remove_extra_whitespaces=bool(_number(normalizer, 4, 1)),
    )


def _piece(data: bytes) -> Piece:
    fields = dict(_fields(data))
    try:
        name = _bytes(fields.get(1, b"")).decode("utf-8")
    except UnicodeDecodeError:
        raise _Broken("a piece is not UTF-8") from None
    (score,) = struct.unpack("<f", _bytes(fields.get(2, b"\0\0\0\0")))
    type = _number(fields, 3, 1)
    if type not in PieceType.__members__.values():
        raise _Broken(f"a piece has the type {type}")
    return name, score, PieceType(type)


def _fields(data: bytes) -> Iterator[tuple[int, _Value]]:
    """The fields of a message: (number, value); a value never reaches past the message."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire == _LENGTH:
            size, position = _varint(data, position)
        elif wire in (_EIGHT_BYTES, _FOUR_BYTES):
            size = 8 if wire == _EIGHT_BYTES else 4
        else:
            raise _Broken(f"a field has the wire type {wire}")
        if not number or size > len(data) - position:
            raise _Broken("a field is longer than what is left")
        yield number, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise _Broken("it ends in the middle of a number")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _Broken("a number is longer than 64 bits")


def _bytes(value: _Value) -> bytes:
    if isinstance(value, int):
        raise _Broken("a field has the wrong type")
    return value


def _number(fields: dict[int, _Value], number: int, default: int) -> int:
    value = fields.get(number, default)
    if not isinstance(value, int):
        raise _Broken("a field has the wrong type")
    return value


def _signed(value: int) -> int:
    """-1 stands as 2^64 - 1 in the file."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _check_charsmap(charsmap: bytes) -> None:
    """Walk the whole trie of the normalization, so that no text can lead out of it.

    The blob is the size of a double array, the array (darts-clone units of 32 bits), and strings that end in zero.
    """
    if not charsmap:
        return
    size = int.from_bytes(charsmap[:4], "little")
    if len(charsmap) < 4 or size % 4 or not 1024 <= size <= len(charsmap) - 4:
        raise _Broken("its normalization has a wrong size")
    units = struct.unpack(f"<{size // 4}I", charsmap[4 : 4 + size])
    strings = charsmap[4 + size :]
    try:
        strings.decode("utf-8")
    except UnicodeDecodeError:
        raise _Broken("its normalization is not UTF-8") from None
    if strings and strings[-1]:
        raise _Broken("its normalization is cut off")
    seen: set[int] = set()
    waiting = [_offset(units[0])]
    while waiting:
        base = waiting.pop()
        for byte in range(256):
            node = base ^ byte
            if node >= len(units):
                # The library looks at any byte of a text there.
                raise _Broken("its normalization leads out of its table")
            unit = units[node]
            if byte and unit & 0x800000FF == byte and node not in seen:
                seen.add(node)
                following = node ^ _offset(unit)
                if unit >> 8 & 1:
                    leaf = units[following] & 0x7FFFFFFF if following < len(units) else len(strings)
                    if leaf >= len(strings) or strings[leaf] & 0xC0 == 0x80:
                        raise _Broken("its normalization leads out of its strings")
                waiting.append(following)


def _offset(unit: int) -> int:
    return unit >> 10 << ((unit & 1 << 9) >> 6)
