"""Opening the tokenizer that a folder or a file holds, in whichever format it is."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar

from yunque.errors import UserError
from yunque.tokenizer.conventions import COMPANIONS, Conventions, read_conventions, read_object, read_small
from yunque.tokenizer.llama2c import read_llama2c
from yunque.tokenizer.merges import (
    read_merges,
    read_ranks,
    read_vocabulary,
    tokenizer_from_merges,
    tokenizer_from_ranks,
)
from yunque.tokenizer.pieces import tokenizer_from_pieces
from yunque.tokenizer.sentencepiece import read_model
from yunque.tokenizer.tokenizer import Tokenizer

_LARGEST_FILE = 256_000_000
# The names that GPT-2's two files have, with Hugging Face and with OpenAI.
_VOCABULARIES, _MERGES = ("vocab.json", "encoder.json"), ("merges.txt", "vocab.bpe")
_PIECE_MODELS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model")
_MOST_EXTRA_IDS = 10_000
_T = TypeVar("_T")


def read_tokenizer(files: Path | Mapping[str, Path], pattern: str | None = None) -> Tokenizer:
    """The tokenizer of a folder, of a file, or of files by name; files beside it tell how it is used.

    The first of these that is there: `tokenizer.json`, a SentencePiece `*.model` (or, as Llama 3 has it, tiktoken
    ranks under that name), `vocab.json` + `merges.txt`, `*.tiktoken`, a llama2.c `tok*.bin`. `pattern` (one of
    PATTERNS) says how a vocabulary without a tokenizer.json divides a text; without it, its size or name does.
    Raises UserError where there is none, and for a file that is broken.
    """
    named = files if isinstance(files, Mapping) else _files_of(files)
    if "tokenizer.json" in named:
        return Tokenizer.of_files(named)
    if len(named) == 1 and (only := next(iter(named))).endswith(".json") and only not in _VOCABULARIES:
        return Tokenizer.of_files({"tokenizer.json": named[only]})
    if model := _first(named, _PIECE_MODELS, ".model"):
        return _read_model(model, named, pattern)
    vocabulary, merges = _first(named, _VOCABULARIES), _first(named, _MERGES)
    if vocabulary and merges:
        return _read_merges(vocabulary, merges, named, pattern)
    if vocabulary or merges:
        raise UserError(
            f"{vocabulary or merges}: a vocab.json and its merges.txt go together: one of them is missing"
        )
    if ranks := _first(named, (), ".tiktoken"):
        return _read_ranks(ranks, named, pattern)
    alone = isinstance(files, Path) and files.is_file()
    if binary := _first(named, ("tokenizer.bin",), ".bin", "" if alone else "tok"):
        return _named(binary, lambda: read_llama2c(read_small(binary, _LARGEST_FILE)))
    raise UserError(
        f"{_place(files)}: no tokenizer there: it would be tokenizer.json, *.model, vocab.json with merges.txt, "
        "*.tiktoken or tok*.bin"
    )


def _files_of(path: Path) -> dict[str, Path]:
    """The files of a folder; of a file, itself and what stands beside it to tell how it is used."""
    if path.is_dir():
        return {file.name: file for file in sorted(path.iterdir()) if file.is_file()}
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder")
    beside: tuple[str, ...] = () if path.name == "tokenizer.json" else _VOCABULARIES + _MERGES
    if path.name not in beside:
        beside = ()
    found = {name: path.parent / name for name in (*COMPANIONS, *beside) if (path.parent / name).is_file()}
    return {**found, path.name: path}


def _first(
    files: Mapping[str, Path], names: tuple[str, ...], suffix: str = "", prefix: str = ""
) -> Path | None:
    found = [name for name in names if name in files]
    if suffix:
        found += sorted(name for name in files if name.endswith(suffix) and name.startswith(prefix))
    return files[found[0]] if found else None


def _place(files: Path | Mapping[str, Path]) -> str:
    return ", ".join(files) or "(no file)" if isinstance(files, Mapping) else str(files)


def _named(path: Path, read: Callable[[], _T]) -> _T:
    """Say which file it was that could not be read."""
    try:
        return read()
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None


def _read_model(path: Path, files: Mapping[str, Path], pattern: str | None) -> Tokenizer:
    data = read_small(path, _LARGEST_FILE)
    told = read_conventions(files)
    if _are_ranks(data):
        return _named(path, lambda: tokenizer_from_ranks(read_ranks(data), pattern, conventions=told))

    def read() -> Tokenizer:
        model = read_model(data)
        kind: Literal["unigram", "bpe"] = "unigram" if model.kind == "unigram" else "bpe"
        add_bos, add_eos = _around(told, model.bos_id >= 0)
        conventions = _with_extra_ids(told, len(model.pieces))
        return tokenizer_from_pieces(
            model.pieces,
            kind,
            bos_id=_present(model.bos_id, len(model.pieces)),
            eos_id=_present(model.eos_id, len(model.pieces)),
            pad_id=_present(model.pad_id, len(model.pieces)),
            add_bos=add_bos,
            add_eos=add_eos,
            add_dummy_prefix=model.add_dummy_prefix,
            remove_extra_whitespaces=model.remove_extra_whitespaces,
            charsmap=model.charsmap,
            conventions=conventions,
        )

    return _named(path, read)


def _with_extra_ids(told: Conventions, count: int) -> Conventions:
    """T5's marks of what was masked stand behind the vocabulary of its model, the last one first."""
    if not (told.tokenizer_class.startswith("T5") or told.model_type == "t5") or told.added:
        return told
    marks = [f"<extra_id_{number}>" for number in reversed(range(min(told.extra_ids, _MOST_EXTRA_IDS)))]
    return replace(told, added=dict(enumerate(marks, count)), special=(*told.special, *marks))


def _present(number: int, count: int) -> int | None:
    return number if 0 <= number < count else None


def _around(told: Conventions, has_bos: bool) -> tuple[bool, bool]:
    """Whether the begin and end tokens stand around a text: as told, else as Llama and T5 have it.

    A SentencePiece model does not say. Llama's has a begin token and puts it first; T5's has none, and puts its end
    token behind.
    """
    if told.add_bos is not None or told.add_eos is not None:
        return bool(told.add_bos), bool(told.add_eos)
    return has_bos, not has_bos


def _are_ranks(data: bytes) -> bool:
    """Whether a `.model` is a rank file, which begins with a token in base64, a space and a number."""
    first = data[:200].split(b"\n", 1)[0].split()
    return len(first) == 2 and first[1].isdigit() and all(0x20 < byte < 0x7F for byte in first[0])


def _read_merges(vocabulary: Path, merges: Path, files: Mapping[str, Path], pattern: str | None) -> Tokenizer:
    told = read_conventions(files)
    tokens = _named(
        vocabulary,
        lambda: read_vocabulary(read_object(str(vocabulary), read_small(vocabulary, _LARGEST_FILE))),
    )
    pairs = _named(merges, lambda: read_merges(read_small(merges, _LARGEST_FILE)))
    special = {token: tokens[token] for token in told.special if token in tokens}
    end = next(iter(told.end_ids), None)
    by_id = {number: token for token, number in tokens.items()}
    if not told.named.get("eos_token") and end in by_id:
        special[by_id[end]] = end
    elif not told.named and "<|endoftext|>" in tokens:
        special["<|endoftext|>"] = tokens["<|endoftext|>"]
    divided = pattern or ("qwen2" if "qwen" in f"{told.tokenizer_class}{told.model_type}".lower() else "gpt2")
    return _named(
        vocabulary,
        lambda: tokenizer_from_merges(
            tokens, pairs, special, divided, composed=divided == "qwen2", conventions=told
        ),
    )


def _read_ranks(path: Path, files: Mapping[str, Path], pattern: str | None) -> Tokenizer:
    told = read_conventions(files)
    named = {
        "cl100k": "cl100k",
        "o200k": "o200k",
        "gpt2": "gpt2",
        "p50k": "gpt2",
        "r50k": "gpt2",
        "qwen": "qwen2",
    }
    guessed = next((known for part, known in named.items() if part in path.name.lower()), None)
    ranks = _named(path, lambda: read_ranks(read_small(path, _LARGEST_FILE)))
    return _named(path, lambda: tokenizer_from_ranks(ranks, pattern or guessed, conventions=told))
