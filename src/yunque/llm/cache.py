"""Answers given before: to the same question, or to one that means the same. Nothing is kept unless asked for."""

import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from yunque.configuration import Settings
from yunque.data.personal import find_personal_data
from yunque.errors import UserError
from yunque.generate.config import GenerationConfig, ToolFormat
from yunque.llm.face import (
    Chunk,
    Completion,
    Cost,
    EmbeddingModel,
    LanguageModel,
    Message,
    Prompt,
    Usage,
)
from yunque.llm.wording import names, negations, numbers
from yunque.llm.wrapped import Wrapped
from yunque.workspace.sqlite_file import SqliteFile

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, alike BLOB NOT NULL, answer TEXT NOT NULL, vector BLOB,
    bytes INTEGER NOT NULL, made REAL NOT NULL, used REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS answers_alike ON answers (alike);
CREATE INDEX IF NOT EXISTS answers_used ON answers (used, bytes);
CREATE TABLE IF NOT EXISTS about (answer INTEGER NOT NULL, who BLOB NOT NULL, PRIMARY KEY (answer, who));
CREATE INDEX IF NOT EXISTS about_who ON about (who);
CREATE TABLE IF NOT EXISTS forgotten (who BLOB PRIMARY KEY, at REAL NOT NULL);
"""
_BYTES_OF_A_ROW = 200
_AHEAD = 60.0
"""A clock that was put right by more than this (seconds) made its entries worthless: their age is not known."""
# No call that began before a person was forgotten goes on for longer than this (seconds).
_LONGEST_CALL = 24 * 3600.0


class CacheSettings(Settings):
    """How much is kept and for how long (`seconds`); what was used last stays.

    With `likeness` (a cosine) a question that is worded otherwise gets the answer too, if an embedding model says
    that it is as alike, and numbers, personal data, capitalized words (names) and negations in it are the same.
    Answers drawn at random
    (`temperature`) are kept only if `sampled`; those of one API key are given to another only if `shared`.
    """

    likeness: float | None = Field(default=None, ge=0.5, le=1.0)
    most_entries: int = Field(default=10_000, ge=1)
    most_bytes: int = Field(default=100_000_000, ge=1)
    seconds: float = Field(default=86_400.0, gt=0)
    sampled: bool = False
    shared: bool = False


@dataclass(frozen=True)
class Question:
    """What a cached answer is an answer to. `asked` is the last text, which may be worded otherwise."""

    key: bytes
    alike: bytes
    about: tuple[bytes, ...]
    asked: str
    started: float


@dataclass(frozen=True)
class Kept:
    """What a cache holds; times are UTC, "" where there is none."""

    answers: int
    bytes: int
    oldest: str
    newest: str

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


class AnswerCache:
    """Answers in a file of their own. Safe for many threads and processes.

    `secret` keys every hash in it, so that nobody can find out from a guess what was asked. Questions are kept as
    such hashes (and as vectors, with `likeness`), answers as they were, personal data of the answer included.
    """

    def __init__(
        self,
        path: Path,
        secret: bytes,
        settings: CacheSettings | None = None,
        embedder: EmbeddingModel | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings or CacheSettings()
        if self.settings.likeness is not None and embedder is None:
            raise UserError("cache.likeness needs an embedding model that says how alike two questions are")
        self._file = SqliteFile(path, _SCHEMA)
        self._secret, self._embedder, self._clock = secret, embedder, clock

    def question(
        self,
        model: str,
        messages: Sequence[Message],
        config: GenerationConfig,
        scope: str = "",
        subject: str = "",
        policy: str = "",
    ) -> Question | None:
        """The question that a request is; None if its answer is not to be kept. `scope` is whose answers they are."""
        settings = self.settings
        drawn = config.temperature > 0 and not settings.sampled
        if drawn or config.candidates > 1 or config.logprobs is not None or config.echo or not messages:
            return None
        if isinstance(config.format, ToolFormat):
            return None
        owner = "" if settings.shared else scope
        frame = [
            model,
            config.model_dump(mode="json"),
            policy,
            owner,
            [asdict(each) for each in messages[:-1]],
        ]
        last = asdict(messages[-1])
        asked = str(last.pop("content"))
        found = [f"{each.kind}:{each.canonical}" for each in find_personal_data(asked)]
        same = [last, sorted(found), numbers(asked), names(asked), negations(asked)]
        texts = [each.content for each in messages]
        texts += [call.arguments for each in messages for call in each.tool_calls]
        return Question(
            self._hash("key", [frame, last, asked]),
            self._hash("alike", [frame, same]),
            self._about(texts, subject),
            asked,
            self._clock(),
        )

    def find(self, question: Question) -> Completion | None:
        """The answer to this question, or to one that means the same."""
        oldest, newest = self._clock() - self.settings.seconds, self._clock() + _AHEAD
        connection = self._file.connection()
        columns = "SELECT id, answer, made, used FROM answers"
        row = connection.execute(
            f"{columns} WHERE key = ? AND made > ? AND made < ?", (question.key, oldest, newest)
        ).fetchone()
        wording = ""
        if row is None and (likest := self._likest(question, oldest, newest)) is not None:
            row = connection.execute(f"{columns} WHERE id = ?", (likest,)).fetchone()
            wording = "to a question that means the same, "
        if row is None:
            return None
        now = self._clock()
        # Who came last is known to a minute: most hits need not write.
        if now - row["used"] > 60:
            connection.execute("UPDATE answers SET used = ? WHERE id = ?", (now, row["id"]))
        kept = json.loads(row["answer"])
        when = _moment(row["made"])
        return Completion(
            kept["text"],
            kept["model"],
            kept["finish_reason"],
            Usage(**kept["usage"]),
            cost=Cost(0.0),
            note="; ".join(filter(None, (f"answered before, {wording}on {when}", kept.get("note", "")))),
        )

    def keep(self, question: Question, completion: Completion) -> bool:
        """Keep an answer; says whether it was. One that calls tools is not, nor an empty one."""
        if completion.tool_calls or not completion.text.strip():
            return False
        kept = {
            "text": completion.text,
            "model": completion.model,
            "finish_reason": completion.finish_reason,
            "usage": asdict(completion.usage),
            "note": completion.note,
        }
        answer = json.dumps(kept, ensure_ascii=False)
        about = {*question.about, *self._about([completion.text], "")}
        vector = self._vector(question.asked)
        size = len(answer.encode()) + len(vector or b"") + _BYTES_OF_A_ROW + 40 * len(about)
        if size > self.settings.most_bytes:
            return False
        now = self._clock()
        with self._file.transaction() as connection:
            marks = ", ".join("?" * len(about))
            gone = connection.execute(
                f"SELECT 1 FROM forgotten WHERE who IN ({marks}) AND at >= ?", (*about, question.started)
            )
            if gone.fetchone():
                return False
            self._delete(
                [
                    row[0]
                    for row in connection.execute("SELECT id FROM answers WHERE key = ?", (question.key,))
                ]
            )
            cursor = connection.execute(
                "INSERT INTO answers (key, alike, answer, vector, bytes, made, used) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (question.key, question.alike, answer, vector, size, now, now),
            )
            connection.executemany(
                "INSERT INTO about VALUES (?, ?)", [(cursor.lastrowid, who) for who in about]
            )
            self._make_room(now)
        return True

    def forget(self, subject: str) -> int:
        """Erase every answer about a person: `subject` as the caller named them, or personal data of theirs.

        Returns how many there were. No byte of them is left in the files afterwards; raises UserError where another
        process keeps that from happening.
        """
        who = self._about([subject], subject)
        marks = ", ".join("?" * len(who))
        now = self._clock()
        with self._file.transaction() as connection:
            rows = connection.execute(f"SELECT DISTINCT answer FROM about WHERE who IN ({marks})", who)
            numbers = [row[0] for row in rows]
            self._delete(numbers)
            connection.execute("DELETE FROM forgotten WHERE at < ?", (now - _LONGEST_CALL,))
            connection.executemany(
                "INSERT OR REPLACE INTO forgotten VALUES (?, ?)", [(one, now) for one in who]
            )
        self._file.scrub()
        return len(numbers)

    def clear(self) -> None:
        """Erase everything."""
        with self._file.transaction() as connection:
            connection.execute("DELETE FROM answers")
            connection.execute("DELETE FROM about")
        self._file.scrub()

    def kept(self) -> Kept:
        """How much there is."""
        row = (
            self._file.connection()
            .execute("SELECT count(*), coalesce(sum(bytes), 0), min(made), max(made) FROM answers")
            .fetchone()
        )
        return Kept(row[0], row[1], _moment(row[2]), _moment(row[3]))

    def __len__(self) -> int:
        return int(self._file.connection().execute("SELECT count(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        """Close this thread's connection."""
        self._file.close()

    def _make_room(self, now: float) -> None:
        connection, settings = self._file.connection(), self.settings
        old = connection.execute(
            "SELECT id FROM answers WHERE made <= ? OR made >= ?", (now - settings.seconds, now + _AHEAD)
        )
        self._delete([row[0] for row in old])
        count, size = connection.execute("SELECT count(*), coalesce(sum(bytes), 0) FROM answers").fetchone()
        dropped: list[int] = []
        if count > settings.most_entries or size > settings.most_bytes:
            for row in connection.execute("SELECT id, bytes FROM answers ORDER BY used, id"):
                if count <= settings.most_entries and size <= settings.most_bytes:
                    break
                dropped.append(row["id"])
                count, size = count - 1, size - row["bytes"]
        self._delete(dropped)

    def _delete(self, numbers: Sequence[int]) -> None:
        connection = self._file.connection()
        connection.executemany("DELETE FROM about WHERE answer = ?", [(number,) for number in numbers])
        connection.executemany("DELETE FROM answers WHERE id = ?", [(number,) for number in numbers])

    def _likest(self, question: Question, oldest: float, newest: float) -> int | None:
        """The answer to the question that is most alike, if one is alike enough."""
        if self.settings.likeness is None:
            return None
        rows = (
            self._file.connection()
            .execute(
                "SELECT id, vector FROM answers"
                " WHERE alike = ? AND made > ? AND made < ? AND vector IS NOT NULL",
                (question.alike, oldest, newest),
            )
            .fetchall()
        )
        if not rows or (vector := self._vector(question.asked)) is None:
            return None
        kept = [row for row in rows if len(row["vector"]) == len(vector)]
        if not kept:
            return None
        likeness = np.frombuffer(b"".join(row["vector"] for row in kept), np.float32).reshape(len(kept), -1)
        cosines = likeness @ np.frombuffer(vector, np.float32)
        best = int(cosines.argmax())
        return int(kept[best]["id"]) if cosines[best] >= self.settings.likeness else None

    def _vector(self, text: str) -> bytes | None:
        if self.settings.likeness is None or not text.strip():
            return None
        assert self._embedder
        vector = np.asarray(self._embedder.embed([text]).vectors[0], np.float32)
        return (vector / max(float(np.linalg.norm(vector)), 1e-12)).tobytes()

    def _about(self, texts: Sequence[str], subject: str) -> tuple[bytes, ...]:
        """The keyed hash of each person that the texts are about."""
        found = {f"{each.kind}:{each.canonical}" for text in texts for each in find_personal_data(text)}
        named = {f"subject:{subject}"} if subject else set()
        return tuple(self._hash("who", one) for one in sorted(found | named))

    def _hash(self, what: str, value: object) -> bytes:
        text = json.dumps([what, value], sort_keys=True, ensure_ascii=False, default=str)
        return hmac.new(self._secret, text.encode(), hashlib.sha256).digest()


class CachedModel(Wrapped):
    """A model in front of which a cache stands. `scope` is whose answers they are (an API key), `subject` the person
    that the caller speaks for, `policy` and `identity` (the model's version) whatever else makes answers differ."""

    def __init__(
        self,
        model: LanguageModel,
        cache: AnswerCache,
        scope: str,
        subject: str = "",
        policy: str = "",
        identity: str = "",
    ) -> None:
        super().__init__(model)
        self._cache = cache
        self._scope, self._subject, self._policy = scope, subject, policy
        self._identity = identity or model.name

    def chat(self, messages: Sequence[Message], config: GenerationConfig) -> Completion:
        """Answer a conversation, as it was answered before if it was."""
        return self._answer(messages, config, "chat", lambda: self.model.chat(messages, config))

    def complete(self, prompt: Prompt, config: GenerationConfig) -> Completion:
        """Go on with a text, as before if it was."""
        return self._answer(
            _as_messages(prompt), config, "complete", lambda: self.model.complete(prompt, config)
        )

    def stream_chat(self, messages: Sequence[Message], config: GenerationConfig) -> Iterator[Chunk]:
        """Answer a conversation piece by piece; what was answered before comes in one."""
        return self._stream(messages, config, "chat", lambda: self.model.stream_chat(messages, config))

    def stream_complete(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        """Go on with a text piece by piece."""
        return self._stream(
            _as_messages(prompt), config, "complete", lambda: self.model.stream_complete(prompt, config)
        )

    def _asked(self, messages: Sequence[Message], config: GenerationConfig, form: str) -> Question | None:
        return self._cache.question(
            f"{self._identity} {form}", messages, config, self._scope, self._subject, self._policy
        )

    def _answer(
        self, messages: Sequence[Message], config: GenerationConfig, form: str, ask: Callable[[], Completion]
    ) -> Completion:
        question = self._asked(messages, config, form)
        if question and (found := self._cache.find(question)):
            return found
        completion = ask()
        if question and self._is_own(completion.model):
            self._cache.keep(question, completion)
        return completion

    def _is_own(self, model: str) -> bool:
        """Whether the model that was asked answered: what a fallback said is not to stand for it tomorrow."""
        named: Callable[[str], bool] | None = getattr(self.model, "is_named", None)
        return named(model) if named else True

    def _stream(
        self,
        messages: Sequence[Message],
        config: GenerationConfig,
        form: str,
        ask: Callable[[], Iterator[Chunk]],
    ) -> Iterator[Chunk]:
        question = self._asked(messages, config, form)
        if question is None:
            yield from ask()
            return
        if found := self._cache.find(question):
            yield Chunk(found.text)
            yield Chunk("", found.finish_reason, found.usage, found.model, cost=found.cost, note=found.note)
            return
        texts: list[str] = []
        called, reason = False, None
        for chunk in ask():
            if chunk.restart:
                texts.clear()
            texts.append(chunk.text)
            called, reason = called or bool(chunk.tool_calls), chunk.finish_reason or reason
            if chunk.usage and reason and not called and self._is_own(chunk.model or self.name):
                whole = Completion(
                    "".join(texts), chunk.model or self.name, reason, chunk.usage, note=chunk.note
                )
                self._cache.keep(question, whole)
            yield chunk


def _moment(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _as_messages(prompt: Prompt) -> list[Message]:
    return [Message("user", prompt if isinstance(prompt, str) else json.dumps(list(prompt)))]
