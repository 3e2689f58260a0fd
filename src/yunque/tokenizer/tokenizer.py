"""One face for every tokenizer: our own byte-level BPE, and those that other models came with.

In our own every byte is in the alphabet and nothing is normalized, so there is no unknown token. In all of them
special tokens cannot be written in a text: `<|end|>` typed by a user is eight ordinary characters.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as AnyTokenizer

from yunque.errors import UserError
from yunque.tokenizer.alphabet import LETTERS, is_byte_level, token_reader
from yunque.tokenizer.bulk import BulkEncoder, bulk_encoder
from yunque.tokenizer.chat import ChatFormat, Turn
from yunque.tokenizer.check import check_described
from yunque.tokenizer.conventions import (
    COMPANIONS,
    TEMPLATE_FILE,
    Conventions,
    read_conventions,
    read_small,
)
from yunque.tokenizer.disguise import disguised, forgeable, random_names

END, PAD, SYSTEM, USER, ASSISTANT = SPECIAL_TOKENS = (
    "<|end|>",
    "<|pad|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
)
_ROLES = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
_SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)
# The end tokens of well-known vocabularies, for a tokenizer.json that comes alone.
_USUAL_ENDS = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "<|im_end|>", "[SEP]")
# Half of a UTF-16 pair: Python can hold one, UTF-8 cannot.
_SURROGATE = re.compile("[\ud800-\udfff]")
_LARGEST_FILE = 256_000_000
_WORTHWHILE = 20


class Tokenizer:
    """Text to ids and back.

    Open one with `Tokenizer.load` or `read_tokenizer`; make one with `Tokenizer.train`. A tokenizer with our own
    special tokens writes a conversation with them; any other needs a chat template for that.
    """

    def __init__(self, inner: AnyTokenizer, conventions: Conventions | None = None) -> None:
        self._conventions = conventions or Conventions()
        self._source = inner
        described = json.loads(inner.to_str())
        flagged = {entry["content"] for entry in described["added_tokens"] if entry["special"]}
        self._own = flagged.issuperset(SPECIAL_TOKENS)
        if not self._own and _complete(inner, self._conventions):
            described = json.loads(inner.to_str())
        vocab = inner.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocab.values(), default=-1) + 1
        if not vocab:
            raise UserError("the tokenizer has no tokens")
        self._special = {token: vocab[token] for token in self._special_names(described, vocab)}
        self.end_ids: tuple[int, ...] = self._find_ends()
        added = {entry["content"]: entry["id"] for entry in described["added_tokens"]}
        self._fill_bytes(vocab, described, set(added))
        self._byte_level = self._own or is_byte_level(described)
        if self._own or not forgeable(described, self._special):
            # The library would otherwise find special tokens inside of ordinary text.
            inner.encode_special_tokens = True
            self._inner = inner
        else:
            self._inner = disguised(described, self._special, random_names(self._special))
        self._described = described
        self._ordinary_added = {token: id for token, id in added.items() if token not in self._special}

    def _special_names(self, described: Mapping[str, Any], vocab: Mapping[str, int]) -> list[str]:
        """The special tokens in the order of their ids."""
        if self._own:
            return list(SPECIAL_TOKENS)
        names = {entry["content"] for entry in described["added_tokens"] if entry["special"]}
        names |= {token for token in self._conventions.special if token in vocab}
        by_id = {number: token for token, number in vocab.items()}
        names |= {by_id[number] for number in self._conventions.end_ids if number in by_id}
        return sorted(names, key=vocab.__getitem__)

    def _find_ends(self) -> tuple[int, ...]:
        if self._own:
            return (self._special[END],)
        told = self._conventions.named.get("eos_token")
        ends = [self._special[told]] if told in self._special else []
        ends += self._conventions.end_ids
        if not ends:
            ends = [self._special[token] for token in _USUAL_ENDS if token in self._special][:1]
        return tuple(dict.fromkeys(ends))

    def _fill_bytes(self, vocab: Mapping[str, int], described: dict[str, Any], added: set[str]) -> None:
        read = token_reader(described)
        self._bytes = [b""] * self.vocab_size
        for token, number in vocab.items():
            if token not in self._special:
                self._bytes[number] = token.encode("utf-8", "replace") if token in added else read(token)

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """The tokenizer of a `tokenizer.json` and the companion files beside it, or of the folder that holds them."""
        file = path / "tokenizer.json" if path.is_dir() else path
        beside = {name: file.parent / name for name in COMPANIONS}
        return cls.of_files({"tokenizer.json": file} | {n: p for n, p in beside.items() if p.is_file()})

    @classmethod
    def of_files(cls, files: Mapping[str, Path]) -> "Tokenizer":
        """The tokenizer of a `tokenizer.json` and its companion files, by name; other files are let be."""
        file = files["tokenizer.json"]
        data = read_small(file, _LARGEST_FILE)
        conventions = read_conventions(files)
        try:
            text = data.decode("utf-8")
            check_described(json.loads(text))
            made = cls(AnyTokenizer.from_str(text), conventions)
            # What is broken in its parts is found out now, and not in the middle of some work.
            made.decode(made.encode_prompt(" Ñandú 👩"))
            return made
        except UserError as error:
            raise UserError(f"{file}: {error}") from None
        except (KeyboardInterrupt, SystemExit):
            raise
        # The library raises bare Exception for a file it does not understand, and BaseException where it panics.
        except BaseException as error:
            raise UserError(f"{file}: is not a tokenizer ({error})") from None

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learn the merges from `texts`; the vocabulary is smaller than asked for where the texts have too few."""
        if vocab_size < _SMALLEST_VOCABULARY:
            raise UserError(
                f"vocab-size: {vocab_size} is too small: "
                f"the bytes and the special tokens alone are {_SMALLEST_VOCABULARY}"
            )
        inner = AnyTokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(LETTERS),
            min_frequency=2,
            show_progress=False,
        )
        inner.train_from_iterator((_encodable(text) for text in texts), trainer)
        return cls(inner)

    def to_json(self) -> str:
        """What `tokenizer.json` holds."""
        return json.dumps(json.loads(self._source.to_str()), ensure_ascii=False, indent=1)

    def to_files(self) -> dict[str, bytes]:
        """The files to keep: `tokenizer.json` and, of a foreign tokenizer, what was told beside it."""
        files = {"tokenizer.json": self.to_json().encode()}
        if self._own and self._conventions.chat_template is None:
            return files
        return {**files, **self._conventions.files}

    @property
    def own(self) -> bool:
        """Whether it has our own special tokens for the roles of a conversation."""
        return self._own

    @property
    def end_id(self) -> int:
        """The token that ends a text or an answer. Raises UserError where no file tells of one."""
        if not self.end_ids:
            raise UserError(
                "the tokenizer has no end token: name one as eos_token in the tokenizer_config.json beside it"
            )
        return self.end_ids[0]

    @property
    def pad_id(self) -> int:
        """The token that fills up a batch: the end token where there is none for it."""
        if self._own:
            return self._special[PAD]
        told = self._conventions.named.get("pad_token")
        if told in self._special:
            return self._special[told]
        return self.end_id if self._conventions.pad_id is None else self._conventions.pad_id

    @property
    def bos_id(self) -> int | None:
        """The token that opens a text, if there is one."""
        return self.end_id if self._own else self._special.get(self._conventions.named.get("bos_token", ""))

    @property
    def mark_ids(self) -> tuple[int, ...]:
        """Special tokens that a model of ours must never write: all of them but the end.

        A foreign model writes what it has learned to write, so there are none.
        """
        return tuple(id for token, id in self._special.items() if token != END) if self._own else ()

    @property
    def special_tokens(self) -> dict[str, int]:
        """The tokens that no text can write, and their ids."""
        return dict(self._special)

    def named_token(self, role: str) -> str | None:
        """The special token that is `bos_token`, `eos_token`, `pad_token`... or None where there is none."""
        if self._own:
            return {"bos_token": END, "eos_token": END, "pad_token": PAD}.get(role)
        told = self._conventions.named.get(role)
        if told is None and role == "eos_token" and self.end_ids:
            return self.token_name(self.end_ids[0])
        return told

    @property
    def chat_template(self) -> str | None:
        """The template of a conversation that came with a foreign tokenizer."""
        return self._conventions.chat_template

    def with_tokens(self, names: Sequence[str]) -> "Tokenizer":
        """The same tokenizer, with the `names` that it has not yet as tokens behind its vocabulary.

        A text can write them, and they are written into texts: they are not special.
        """
        inner = AnyTokenizer.from_str(self._source.to_str())
        missing = [name for name in names if inner.token_to_id(name) is None]
        inner.add_tokens([AddedToken(name, normalized=False) for name in missing])
        return Tokenizer(inner, self._conventions)

    def with_chat_template(self, template: str) -> "Tokenizer":
        """The same tokenizer, which writes conversations as `template` (Jinja) says.

        Raises UserError for a template that cannot write a question and its answer.
        """
        files = {**self._conventions.files, TEMPLATE_FILE: template.encode()}
        told = replace(self._conventions, chat_template=template, files=files)
        made = Tokenizer(AnyTokenizer.from_str(self._source.to_str()), told)
        asked, _ = made.encode_chat([("user", "¿Sí?")], True)
        _, written = made.encode_chat([("user", "¿Sí?"), ("assistant", "Sí")], False)
        if not asked or True not in written:
            raise UserError("the chat template writes no question, or no answer")
        return made

    def token_id(self, name: str) -> int | None:
        """The id of a token by its name in `tokenizer.json`, special or not."""
        id: int | None = self._source.token_to_id(name)
        return id

    def encode(self, text: str) -> list[int]:
        """The ids of a text. A lone surrogate, which UTF-8 cannot hold, becomes U+FFFD."""
        ids: list[int] = self._inner.encode(_encodable(text), add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """`encode` of many texts, on every core; much text goes through a quicker encoder (see bulk.py)."""
        clean = [_encodable(text) for text in texts]
        # Making that encoder takes as long as encoding some characters for each of its tokens.
        if sum(map(len, clean)) > _WORTHWHILE * self.vocab_size and self._bulk is not None:
            return self._bulk.encode_batch(clean)
        batch = self._inner.encode_batch_fast(clean, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in batch]

    @cached_property
    def _bulk(self) -> BulkEncoder | None:
        return bulk_encoder(self._described, self._inner)

    @cached_property
    def fingerprint(self) -> str:
        """What stands for the ids that it gives: tokenizers with the same one encode alike."""
        files = {name: sha256(content).hexdigest() for name, content in self.to_files().items()}
        return sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()

    def encode_prompt(self, text: str) -> list[int]:
        """The beginning of a document, as the model has seen it in training.

        Ours: the end token, which stands before every document, and `text`. A foreign one: `text` with the tokens
        that its own makers put around it (BOS before it, say, or `</s>` behind the input of a T5).
        """
        if self._own:
            return [self.end_id, *self.encode(text)]
        before, behind = self._around
        return [*before, *self.encode(text), *behind]

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        source = self._source
        if source.padding or source.truncation:
            bare = {**self._described, "padding": None, "truncation": None}
            source = AnyTokenizer.from_str(json.dumps(bare))
        encoding = source.encode("a", add_special_tokens=True)
        inside = [position for position, mask in enumerate(encoding.special_tokens_mask) if not mask]
        if not inside:
            return list(encoding.ids), []
        return list(encoding.ids[: inside[0]]), list(encoding.ids[inside[-1] + 1 :])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`. Special tokens are no text; bytes that make no character become U+FFFD."""
        if self._byte_level:
            return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")
        special = set(self._special.values())
        text: str = self._inner.decode([id for id in ids if id not in special], skip_special_tokens=True)
        return text

    def token_bytes(self, id: int) -> bytes:
        """The bytes that a token stands for: none for a special token, and none past the vocabulary.

        In a SentencePiece vocabulary the first word of a text has a space before it here, which `decode` drops.
        """
        return self._bytes[id] if id < self.vocab_size else b""

    def token_name(self, id: int) -> str:
        """A special token's name, else its text with U+FFFD for half a character."""
        for token, number in self._special.items():
            if number == id:
                return token
        return self.token_bytes(id).decode("utf-8", errors="replace")

    @property
    def writes_tools(self) -> bool:
        """Whether `encode_chat` takes `tools`, and messages with `tool_calls` or of role tool: its chat template has
        a place for them."""
        return self._follows_template and self._chat_format.writes_tools

    @property
    def _follows_template(self) -> bool:
        return not self._own or self._conventions.chat_template is not None

    def encode_chat(
        self,
        messages: Sequence[Turn],
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> tuple[list[int], list[bool]]:
        """The ids of a conversation, and which of them a model is to write (answers with their end token).

        Each message is (role, content), or where `writes_tools` a mapping of all its fields, and `tools` are what
        the template is told of. `add_generation_prompt` opens the answer that the model is to give.
        Tuning and serving both use this function, so that a model is asked as it was taught. A foreign tokenizer
        follows its chat template; special tokens count where the template writes them, and are text in a content.
        Raises UserError for a role that is not one, and where there is no template or it refuses the conversation.
        """
        if self._follows_template:
            return self._chat_format.encode(
                [_encodable_all(message) for message in messages],
                add_generation_prompt,
                _encodable_all(list(tools)) if tools else None,
            )
        ids: list[int] = []
        written: list[bool] = []
        for role, content in (_as_pair(message) for message in messages):
            if role not in _ROLES:
                raise UserError(f"{role!r} is not a role ({', '.join(_ROLES)})")
            text = self.encode(content)
            ids += [self._special[_ROLES[role]], *text]
            written += [False] + [role == "assistant"] * len(text)
            if role == "assistant":
                ids.append(self.end_id)
                written.append(True)
        if add_generation_prompt:
            ids.append(self._special[ASSISTANT])
            written.append(False)
        return ids, written

    @cached_property
    def _chat_format(self) -> ChatFormat:
        template = self._conventions.chat_template
        if template is None:
            raise UserError(
                "the tokenizer has no chat template, so it cannot write a conversation: import the model with "
                "--chat-template plain (or a Jinja file of yours), or give it a plain text"
            )
        return ChatFormat(
            template,
            self._described,
            self._special,
            self._ordinary_added,
            self._conventions.named,
            self.end_ids,
        )


def _complete(inner: AnyTokenizer, conventions: Conventions) -> bool:
    """Add the tokens that only the companion files name, at the end of the vocabulary; say whether there were any."""
    told = [token for _, token in sorted(conventions.added.items())]
    told += [*conventions.named.values(), *conventions.special]
    missing = [token for token in dict.fromkeys(told) if inner.token_to_id(token) is None]
    for token in missing:
        special = token in conventions.special
        inner.add_tokens([AddedToken(token, special=special, normalized=not special)])
    for number, token in conventions.added.items():
        if inner.token_to_id(token) != number:
            raise UserError(
                f"the token {token!r} has the id {number} in the companion files and {inner.token_to_id(token)} in "
                "the vocabulary: put the files of one model together"
            )
    return bool(missing)


def _as_pair(message: Turn) -> tuple[str, str]:
    return (message["role"], message["content"]) if isinstance(message, Mapping) else message


def _encodable_all(value: Any) -> Any:
    """A JSON value (or a message) whose texts can all be encoded."""
    if isinstance(value, str):
        return _encodable(value)
    if isinstance(value, Mapping):
        return {_encodable(key): _encodable_all(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_encodable_all, value))
    return [_encodable_all(each) for each in value] if isinstance(value, list) else value


def _encodable(text: str) -> str:
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)
