"""Conversations: kept or not by a policy, each sealed with a key of its own, searchable, exportable, erasable.

On disk there is nothing in the clear but ids, times and counts. Erasing destroys the key and overwrites the rows.
"""

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from yunque.apps.keeping.database import SqliteDatabase, Vanished
from yunque.apps.keeping.sealing import Seals, Unreadable
from yunque.apps.memory.policy import MemoryPolicy
from yunque.apps.memory.search import Found, search_in
from yunque.apps.memory.window import Count, Summarize, Summary, Window, conversation_window
from yunque.errors import UserError
from yunque.llm.face import Message, ToolCall
from yunque.workspace import Workspace

FILE = "memory.db"
_SCHEMA = """
CREATE TABLE conversations (
    id TEXT PRIMARY KEY, subject TEXT NOT NULL, created TEXT NOT NULL, updated TEXT NOT NULL, expires TEXT NOT NULL,
    sealed BLOB NOT NULL, summary BLOB
);
CREATE INDEX conversations_by_subject ON conversations (subject);
CREATE TABLE messages (
    conversation TEXT NOT NULL REFERENCES conversations ON DELETE CASCADE, number INTEGER NOT NULL,
    time TEXT NOT NULL, sealed BLOB NOT NULL, PRIMARY KEY (conversation, number)
);
CREATE TABLE gone (id TEXT PRIMARY KEY, time TEXT NOT NULL)
"""
_BETWEEN_SWEEPS = timedelta(hours=1)
_SESSION_LIFE = timedelta(days=1)
MOST_IN_SESSION = 10_000
"""How many conversations are kept in the memory of a process; beyond that, and a day after its last message, the one
that was used the longest ago is let go."""
Now = Callable[[], datetime]


@dataclass(frozen=True)
class Conversation:
    """A conversation as it is listed: times are UTC, `summary` stands for its older messages."""

    id: str
    app: str
    created: str
    updated: str
    expires: str
    messages: int
    summary: Summary | None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Kept:
    """A message that is kept: its number in the conversation, from 0, and when it was said."""

    number: int
    time: str
    message: Message

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"number": self.number, "time": self.time, **_told(self.message)}


class Memory:
    """The conversations of a workspace under one policy; safe for several threads and processes."""

    def __init__(self, workspace: Workspace, policy: MemoryPolicy, now: Now | None = None) -> None:
        self.policy = policy
        self._now = now or (lambda: datetime.now(UTC))
        self._seals = Seals(workspace.keys, "memory")
        self._database = SqliteDatabase(workspace.root / FILE, _SCHEMA) if policy.keep == "days" else None
        self._session: dict[str, tuple[Conversation, str, list[Kept]]] = {}
        self._turn = threading.RLock()
        self._swept = self._now()

    @classmethod
    def open(cls, workspace: Workspace, policy: MemoryPolicy | None = None) -> "Memory":
        """The memory of a workspace under a policy; without one, what is on disk (to look at, export, erase)."""
        on_disk = MemoryPolicy(keep="days", days=36_500)
        memory = cls(workspace, policy or on_disk)
        if memory.policy.keep == "days":
            memory.expire()
        elif (workspace.root / FILE).exists():
            # An earlier policy kept some: its time passes all the same.
            cls(workspace, on_disk).expire()
        return memory

    def begin(self, subject: str = "", app: str = "") -> str:
        """A new conversation; `subject` is the person whose it is, kept as a pseudonym. Returns its id, which is
        valid with every policy."""
        id = f"{self._now():%Y%m%d}-{secrets.token_hex(8)}"
        time = self._moment()
        if self._now() - self._swept > _BETWEEN_SWEEPS:
            self.expire()
        if self.policy.keep == "session":
            with self._turn:
                self._let_go(MOST_IN_SESSION - 1)
                self._session[id] = (Conversation(id, app, time, time, "", 0, None), subject, [])
        elif self._database is not None:
            self._seals.make(id)
            self._database.write(
                "INSERT INTO conversations (id, subject, created, updated, expires, sealed)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (
                    id,
                    self._seals.pseudonym(subject),
                    time,
                    time,
                    self._expiry(),
                    self._seals.seal(id, "about", app),
                ),
            )
        return id

    def add(self, id: str, *messages: Message) -> None:
        """Keep messages behind those of a conversation: all of them, or none. Raises UserError where it was erased or
        has expired; with `keep: none` nothing is kept."""
        if self.policy.keep == "session":
            with self._turn:
                about, subject, kept = self._in_session(id)
                number = kept[-1].number + 1 if kept else 0
                kept += [Kept(number + n, self._moment(), one) for n, one in enumerate(messages)]
                # Behind the others: they stand in the order in which they were used.
                del self._session[id]
                self._session[id] = (
                    Conversation(id, about.app, about.created, self._moment(), "", len(kept), about.summary),
                    *(subject, kept),
                )
        elif self._database is not None:
            with self._there(id), self._database.transaction():
                row = self._row(id)
                number = self._next_number(id, row)
                for place, one in enumerate(messages, number):
                    self._database.write(
                        "INSERT INTO messages (conversation, number, time, sealed) VALUES (?, ?, ?, ?)",
                        (id, place, self._moment(), self._seals.seal(id, str(place), _told(one))),
                    )
                self._database.write(
                    "UPDATE conversations SET updated = ?, expires = ? WHERE id = ?",
                    (self._moment(), self._expiry(), id),
                )

    def messages(self, id: str) -> list[Kept]:
        """The messages of a conversation, in order; those that a summary replaced may be gone. Raises UserError."""
        if self.policy.keep == "session":
            with self._turn:
                return list(self._in_session(id)[2])
        if self._database is None:
            return []
        with self._there(id):
            self._row(id)
            return self._opened(id)

    def conversation(self, id: str) -> Conversation:
        """A conversation as it is listed; raises UserError."""
        if self.policy.keep == "session":
            with self._turn:
                return self._in_session(id)[0]
        with self._there(id):
            return self._about(self._row(id))

    def conversations(self, subject: str | None = None) -> list[Conversation]:
        """All of them, the latest first; those of one person, if named."""
        if self.policy.keep == "session":
            with self._turn:
                self._let_go()
                found = [about for about, whose, _ in self._session.values() if subject in (None, whose)]
            return sorted(found, key=lambda one: one.updated, reverse=True)
        if self._database is None:
            return []
        name = None if subject is None else self._seals.pseudonym(subject)
        rows = self._database.read(
            "SELECT * FROM conversations WHERE (? IS NULL OR subject = ?) AND expires > ? ORDER BY updated DESC, id",
            (name, name, self._moment()),
        )
        listed = []
        for row in rows:
            try:
                listed.append(self._about(row))
            except Unreadable:  # erased at this moment, or by a kill in the middle of it
                continue
        return listed

    def window(
        self, id: str, room: int, summarize: Summarize | None = None, count: Count | None = None,
        system: tuple[Message, ...] = (),
    ) -> Window:  # fmt: skip
        """What of a conversation is shown to a model in `room` tokens; see `conversation_window`. A new summary is
        kept, and with `originals: drop` the messages that it stands for are deleted."""
        kept = self.messages(id)
        earlier = None if self.policy.keep == "none" else self.conversation(id).summary
        first = kept[0].number if kept else 0
        # Numbers of messages are those of the conversation; in the window they begin behind the system's.
        shift = len(system) - first
        moved = earlier and Summary(earlier.text, earlier.first + shift, earlier.last + shift, earlier.model)
        shown = conversation_window([*system, *(one.message for one in kept)], room, summarize, count, moved)
        if shown.fresh and shown.summary:
            summary = shown.summary
            self._summarized(id, Summary(summary.text, earlier.first if earlier else summary.first - shift,
                                         summary.last - shift, summary.model))  # fmt: skip
        return shown

    def search(self, query: str, k: int = 10, subject: str | None = None) -> list[Found]:
        """The messages nearest to some words, best first. They are unsealed for it one by one, in memory: no index of
        what was said lies on the disk."""
        texts = (
            (one.id, kept.number, kept.time, kept.message)
            for one in self.conversations(subject)
            for kept in self._readable(one.id)
        )
        return search_in(texts, query, k)

    def export(self, subject: str | None = None, id: str | None = None) -> Iterator[dict[str, Any]]:
        """Conversations as JSON values, one each, with their messages: all, those of a person, or the one named."""
        for one in [self.conversation(id)] if id else self.conversations(subject):
            yield {**one.as_dict(), "messages": [kept.as_dict() for kept in self._readable(one.id)]}

    def erase(self, *ids: str) -> bool:
        """Erase conversations: keys, rows and bytes. Nothing can be added to them again. False if somebody reading
        kept the bytes from being overwritten yet (they cannot be read without the key). Raises UserError for an id
        that is none."""
        for id in ids:
            self.conversation(id)
        return self._erased(list(ids))

    def forget(self, subject: str) -> int:
        """Erase all conversations of a person; returns how many."""
        if not subject:
            return 0
        ids = [one.id for one in self.conversations(subject)]
        self._erased(ids)
        return len(ids)

    def expire(self) -> int:
        """Erase what has expired; returns how many. What has expired is not shown even before."""
        if self._database is None:
            with self._turn:
                return self._let_go()
        self._swept = self._now()
        rows = self._database.read("SELECT id, expires FROM conversations")
        # One whose key is gone was being erased when the process was killed.
        over = [
            row["id"] for row in rows if row["expires"] <= self._moment() or not self._seals.has(row["id"])
        ]
        if over:
            self._erased(over)
        return len(over)

    def _erased(self, ids: list[str]) -> bool:
        if self._database is None:
            with self._turn:
                for id in ids:
                    self._session.pop(id, None)
            return True
        # The keys go first: whatever is killed afterwards, nobody reads it any more.
        for id in ids:
            self._seals.destroy(id)
        with self._database.transaction():
            for id in ids:
                self._database.write("DELETE FROM conversations WHERE id = ?", (id,))
                self._database.write(
                    "INSERT INTO gone VALUES (?, ?) ON CONFLICT (id) DO NOTHING", (id, self._moment())
                )
        return self._database.wipe()

    def _summarized(self, id: str, summary: Summary) -> None:
        if self.policy.keep == "session":
            with self._turn:
                about, subject, kept = self._in_session(id)
                if self.policy.originals == "drop":
                    kept = [one for one in kept if one.number > summary.last]
                self._session[id] = (
                    Conversation(id, about.app, about.created, about.updated, "", len(kept), summary),
                    *(subject, kept),
                )
        elif self._database is not None:
            with self._there(id), self._database.transaction():
                self._row(id)
                self._database.write(
                    "UPDATE conversations SET summary = ? WHERE id = ?",
                    (self._seals.seal(id, "summary", asdict(summary)), id),
                )
                if self.policy.originals == "drop":
                    self._database.write(
                        "DELETE FROM messages WHERE conversation = ? AND number <= ?", (id, summary.last)
                    )
            if self.policy.originals == "drop":
                self._database.wipe()

    def _in_session(self, id: str) -> tuple[Conversation, str, list[Kept]]:
        self._let_go()
        if id not in self._session:
            raise UserError(
                f"there is no conversation {id!r} in this session (one is let go a day after its last message)"
            )
        return self._session[id]

    def _let_go(self, most: int = MOST_IN_SESSION) -> int:
        """Let those go that nobody used for too long, and the oldest beyond `most`; returns how many. They stand in
        the order in which they were used, so none is looked at that stays."""
        last = (self._now().astimezone(UTC) - _SESSION_LIFE).isoformat(timespec="milliseconds")
        gone = 0
        while self._session:
            oldest = next(iter(self._session))
            if self._session[oldest][0].updated > last and len(self._session) <= most:
                break
            del self._session[oldest]
            gone += 1
        return gone

    def _row(self, id: str) -> Any:
        assert self._database is not None
        rows = self._database.read("SELECT * FROM conversations WHERE id = ?", (id,))
        if not rows or rows[0]["expires"] <= self._moment():
            gone = rows or self._database.read("SELECT id FROM gone WHERE id = ?", (id,))
            raise UserError(
                f"the conversation {id} was erased or has expired"
                if gone
                else f"there is no conversation {id!r}"
            )
        return rows[0]

    def _next_number(self, id: str, row: Any) -> int:
        assert self._database is not None
        last = self._database.read("SELECT max(number) AS last FROM messages WHERE conversation = ?", (id,))
        after = -1 if last[0]["last"] is None else int(last[0]["last"])
        summary = self._summary(row)
        return max(after, summary.last if summary else -1) + 1

    def _about(self, row: Any) -> Conversation:
        assert self._database is not None
        count = self._database.read("SELECT count(*) AS n FROM messages WHERE conversation = ?", (row["id"],))
        app = self._seals.open(row["id"], "about", row["sealed"])
        return Conversation(
            *(row["id"], app, row["created"], row["updated"], row["expires"], int(count[0]["n"])),
            summary=self._summary(row),
        )

    def _summary(self, row: Any) -> Summary | None:
        return Summary(**self._seals.open(row["id"], "summary", row["summary"])) if row["summary"] else None

    def _opened(self, id: str) -> list[Kept]:
        assert self._database is not None
        rows = self._database.read("SELECT * FROM messages WHERE conversation = ? ORDER BY number", (id,))
        return [
            Kept(row["number"], row["time"], _read(self._seals.open(id, str(row["number"]), row["sealed"])))
            for row in rows
        ]

    def _readable(self, id: str) -> list[Kept]:
        """The messages, or none where the conversation is erased at this moment."""
        try:
            return self.messages(id)
        except UserError:
            return []

    @contextmanager
    def _there(self, id: str) -> Iterator[None]:
        try:
            yield
        except (Vanished, Unreadable):
            raise UserError(f"the conversation {id} was erased or has expired") from None

    def _moment(self) -> str:
        return self._now().astimezone(UTC).isoformat(timespec="milliseconds")

    def _expiry(self) -> str:
        assert self.policy.days is not None
        return (self._now().astimezone(UTC) + timedelta(days=self.policy.days)).isoformat(
            timespec="milliseconds"
        )


def _told(message: Message) -> dict[str, Any]:
    told: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        told["tool_calls"] = [asdict(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        told["tool_call_id"] = message.tool_call_id
    return told


def _read(told: dict[str, Any]) -> Message:
    calls = tuple(ToolCall(**call) for call in told.get("tool_calls", ()))
    return Message(told["role"], told["content"], calls, told.get("tool_call_id"))
