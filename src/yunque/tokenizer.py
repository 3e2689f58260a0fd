"""Byte-level BPE: any text becomes ids and comes back as it was.

Every byte is in the alphabet and nothing is normalized, so there is no unknown token. Special tokens cannot be
written in a text: `<|end|>` typed by a user is eight ordinary characters.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer as BytePairTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from yunque.data.texts import training_texts
from yunque.errors import UserError
from yunque.progress import Progress, silent
from yunque.workspace import Artifact, Workspace

END, PAD, SYSTEM, USER, ASSISTANT = SPECIAL_TOKENS = (
    "<|end|>",
    "<|pad|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
)
_ROLES = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
_SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)
# Half of a UTF-16 pair: Python can hold one, UTF-8 cannot.
_SURROGATE = re.compile("[\ud800-\udfff]")


def _byte_of_letter() -> dict[str, int]:
    """Which byte each letter of the byte-level alphabet stands for (the table of GPT-2).

    Printable Latin-1 letters stand for themselves; the other bytes have letters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + position): byte for position, byte in enumerate(others)
    }


class Tokenizer:
    """Text to ids and back. Open one with `Tokenizer.load`; make one with `Tokenizer.train`."""

    def __init__(self, inner: BytePairTokenizer) -> None:
        # The library would otherwise find special tokens inside of ordinary text.
        inner.encode_special_tokens = True
        self._inner = inner
        ids: dict[str, int] = {}
        for token in SPECIAL_TOKENS:
            number = inner.token_to_id(token)
            if number is None:
                raise UserError(f"the tokenizer lacks the special token {token}")
            ids[token] = number
        self._special = ids
        self.end_id = ids[END]
        self.pad_id = ids[PAD]
        self.vocab_size: int = inner.get_vocab_size()
        letters, special = _byte_of_letter(), set(ids.values())
        self._bytes = [b""] * self.vocab_size
        for token, number in inner.get_vocab().items():
            if number not in special:
                self._bytes[number] = bytes(letters[letter] for letter in token)

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """The tokenizer of a `tokenizer.json`, or of the folder that holds one."""
        file = path / "tokenizer.json" if path.is_dir() else path
        try:
            return cls(BytePairTokenizer.from_str(file.read_text(encoding="utf-8")))
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror})") from None
        except UserError as error:
            raise UserError(f"{file}: {error}") from None
        except Exception as error:  # the library raises bare Exception for a file it does not understand
            raise UserError(f"{file}: is not a tokenizer ({error})") from None

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learn the merges from `texts`; the vocabulary is smaller than asked for where the texts have too few."""
        if vocab_size < _SMALLEST_VOCABULARY:
            raise UserError(
                f"vocab-size: {vocab_size} is too small: "
                f"the bytes and the special tokens alone are {_SMALLEST_VOCABULARY}"
            )
        inner = BytePairTokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(_byte_of_letter()),
            min_frequency=2,
            show_progress=False,
        )
        inner.train_from_iterator((_encodable(text) for text in texts), trainer)
        return cls(inner)

    def to_json(self) -> str:
        """What `tokenizer.json` holds."""
        return json.dumps(json.loads(self._inner.to_str()), ensure_ascii=False, indent=1)

    @property
    def mark_ids(self) -> tuple[int, ...]:
        """Special tokens that a model must never write: all of them but the end."""
        return tuple(number for token, number in self._special.items() if token != END)

    def encode(self, text: str) -> list[int]:
        """The ids of a text. A lone surrogate, which UTF-8 cannot hold, becomes U+FFFD; all else is kept."""
        ids: list[int] = self._inner.encode(_encodable(text), add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, on every core."""
        batch = self._inner.encode_batch_fast([_encodable(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in batch]

    def encode_prompt(self, text: str) -> list[int]:
        """The beginning of a document: the end token, which stands before every document in training, and `text`."""
        return [self.end_id, *self.encode(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`. Special tokens are no text; bytes that make no character become U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes that a token stands for: none for a special token."""
        return self._bytes[id]

    def token_name(self, id: int) -> str:
        """A special token's name, else its text with U+FFFD for half a character."""
        for token, number in self._special.items():
            if number == id:
                return token
        return self.decode([id])

    def encode_chat(
        self, messages: Sequence[tuple[str, str]], add_generation_prompt: bool
    ) -> tuple[list[int], list[bool]]:
        """The ids of a conversation, and which of them a model is to write (answers with their end token).

        Each message is (role, content). `add_generation_prompt` opens the answer that the model is to give.
        Tuning and serving both use this function, so that a model is asked as it was taught.
        """
        ids: list[int] = []
        written: list[bool] = []
        for role, content in messages:
            if role not in _ROLES:
                raise UserError(f"{role!r} is not a role ({', '.join(_ROLES)})")
            said = self.encode(content)
            ids += [self._special[_ROLES[role]], *said]
            written += [False] + [role == "assistant"] * len(said)
            if role == "assistant":
                ids.append(self.end_id)
                written.append(True)
        if add_generation_prompt:
            ids.append(self._special[ASSISTANT])
            written.append(False)
        return ids, written


def _encodable(text: str) -> str:
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def train_tokenizer(
    workspace: Workspace, name: str, refs: Sequence[str], vocab_size: int, progress: Progress = silent
) -> Artifact:
    """Learn a tokenizer from the training rows of datasets and keep it as the artifact `name`."""
    datasets = [workspace.get(ref, "dataset") for ref in refs]
    if not datasets:
        raise UserError("a tokenizer needs text: name a dataset with --data (see `yunque list dataset`)")
    counts = {"rows": 0, "bytes": 0}

    def texts() -> Iterator[str]:
        with progress("Learning the tokenizer") as task:
            for dataset in datasets:
                for _, text in training_texts(workspace, dataset):
                    counts["rows"] += 1
                    counts["bytes"] += len(text.encode("utf-8", "replace"))
                    task.advance(1, note=f"{counts['bytes'] / 1e6:.1f} MB read")
                    yield text

    tokenizer = Tokenizer.train(texts(), vocab_size)
    if not counts["rows"]:
        raise UserError(f"{', '.join(dataset.ref for dataset in datasets)}: no row to learn from")
    return workspace.put(
        "tokenizer",
        name,
        {"tokenizer.json": tokenizer.to_json().encode()},
        parents=datasets,
        config={"vocab_size": vocab_size},
        figures={**counts, "vocab_size": tokenizer.vocab_size},
    )
