"""What bytes a token stands for, in each of the ways in which tokenizers write bytes as letters."""

import re
from collections.abc import Callable
from typing import Any

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
BLANK = "▁"


def byte_of_letter() -> dict[str, int]:
    """Which byte each letter of the byte-level alphabet stands for (the table of GPT-2).

    Printable Latin-1 letters stand for themselves; the other bytes have letters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + position): byte for position, byte in enumerate(others)
    }


LETTERS = byte_of_letter()
LETTER_OF_BYTE = {byte: letter for letter, byte in LETTERS.items()}


def letters_of(data: bytes) -> str:
    """The bytes written in the byte-level alphabet."""
    return "".join(LETTER_OF_BYTE[byte] for byte in data)


def bytes_of_letters(token: str) -> bytes:
    """The bytes of a token of a byte-level vocabulary; a token in other letters stands for itself."""
    try:
        return bytes(LETTERS[letter] for letter in token)
    except KeyError:
        return token.encode("utf-8", "replace")


def is_byte_level(tokenizer: dict[str, Any]) -> bool:
    """Whether a `tokenizer.json` decodes with the byte-level alphabet."""
    return "ByteLevel" in _types(tokenizer.get("decoder"))


def token_reader(tokenizer: dict[str, Any]) -> Callable[[str], bytes]:
    """The function from a token's name to its bytes, as the decoder of a `tokenizer.json` has it."""
    decoder = tokenizer.get("decoder")
    types = _types(decoder)
    if "ByteLevel" in types:
        return bytes_of_letters
    if "WordPiece" in types:
        prefix = decoder.get("prefix", "##") if isinstance(decoder, dict) else "##"
        return lambda token: (token.removeprefix(prefix) if token.startswith(prefix) else " " + token).encode(
            "utf-8", "replace"
        )
    if "BPEDecoder" in types:
        suffix = decoder.get("suffix", "</w>") if isinstance(decoder, dict) else "</w>"
        return lambda token: (
            token.removesuffix(suffix) + (" " if suffix and token.endswith(suffix) else "")
        ).encode("utf-8", "replace")
    fallback, blank = "ByteFallback" in types, bool(types & {"Metaspace", "Replace"})

    def of_piece(token: str) -> bytes:
        if fallback and (found := _BYTE_PIECE.fullmatch(token)):
            return bytes([int(found[1], 16)])
        return (token.replace(BLANK, " ") if blank else token).encode("utf-8", "replace")

    return of_piece


def _types(part: Any) -> set[str]:
    """The types of a part of a `tokenizer.json` and of what it is made of."""
    if not isinstance(part, dict):
        return set()
    found = {str(part.get("type"))}
    for key in ("decoders", "normalizers", "pretokenizers", "processors"):
        for each in part.get(key) or ():
            found |= _types(each)
    return found
