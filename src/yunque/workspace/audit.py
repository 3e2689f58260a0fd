"""The audit log: a line for each thing done, each line chained to the one before it and signed.

A line is JSON with `seq`, `time`, `action`, `ref`, `details`, `previous` (the hash of the line before),
`hash` (SHA-256 of all of these) and `signature` (Ed25519 of the hash). An edited, moved, added or removed
line breaks the chain or a signature; a cut end is found against the head kept in the catalog.

What it cannot show: someone who holds the workspace's keys *and* its catalog can write a new history. Keep
the head that `yunque audit verify` prints in another place, and hand it back with `--expect`, to see that too.
"""

import fcntl
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature

from yunque.workspace.keys import Keys

_FIRST = "0" * 64


@dataclass(frozen=True)
class Verification:
    """What a check of the log found; `problems` name the line."""

    entries: int
    head: str
    problems: list[str]

    @property
    def intact(self) -> bool:
        """Whether nothing was found."""
        return not self.problems


def _digest(entry: dict[str, Any]) -> str:
    signed = {name: entry[name] for name in ("seq", "time", "action", "ref", "details", "previous")}
    return hashlib.sha256(
        json.dumps(signed, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    ).hexdigest()


class AuditLog:
    """The log of one workspace, in `audit.jsonl`; its head stands in the catalog's `audit_head` table."""

    def __init__(self, path: Path, keys: Keys) -> None:
        self.path = path
        self._keys = keys

    def append(self, connection: sqlite3.Connection, action: str, ref: str, **details: Any) -> str:
        """Add a line and return its hash; call it inside the transaction of what it tells about.

        The line is on disk before the transaction commits, so nothing recorded lacks its line; a kill in
        between leaves a line about something that was not finished, which a retry then tells again.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            last = _last_line(file.fileno(), self.path)
            head = connection.execute("SELECT seq, hash FROM audit_head WHERE id = 1").fetchone()
            if head and (last is None or last["seq"] < head[0]):
                # The end was cut. Going on from the head that was kept leaves the gap in sight for ever.
                last = {"seq": head[0], "hash": head[1]}
            entry: dict[str, Any] = {
                "seq": last["seq"] + 1 if last else 1,
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "action": action,
                "ref": ref,
                "details": details,
                "previous": last["hash"] if last else _FIRST,
            }
            entry["hash"] = _digest(entry)
            entry["signature"] = self._keys.signing_key().sign(bytes.fromhex(entry["hash"])).hex()
            file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            connection.execute(
                "INSERT INTO audit_head (id, seq, hash) VALUES (1, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET seq = excluded.seq, hash = excluded.hash",
                (entry["seq"], entry["hash"]),
            )
        return str(entry["hash"])

    def entries(self) -> Iterator[dict[str, Any]]:
        """Every line that can be read, oldest first."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                if isinstance(entry, dict):
                    yield entry

    def verify(self, connection: sqlite3.Connection, expect: str | None = None) -> Verification:
        """Check the chain, every signature, the head in the catalog, and a head hash kept elsewhere."""
        public = self._keys.signing_key().public_key()
        problems: list[str] = []
        hashes: dict[int, str] = {}  # by the number that an entry gives itself
        last, previous = 0, _FIRST
        lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
                written, signature = str(entry["hash"]), bytes.fromhex(entry["signature"])
                digest, seq, follows = _digest(entry), int(entry["seq"]), entry["previous"]
            except (ValueError, KeyError, TypeError):
                problems.append(f"line {number}: is not a log entry")
                last, previous = (
                    last + 1,
                    "",
                )  # what stood here is not known, so the next line is taken as it is
                continue
            if digest != written:
                problems.append(f"line {number}: its content was changed after it was written")
            if seq != last + 1 or follows != (previous or follows):
                problems.append(f"line {number}: a line before it was added, removed or moved")
            try:
                public.verify(signature, bytes.fromhex(written))
            except (InvalidSignature, ValueError):
                problems.append(f"line {number}: its signature is not this workspace's")
            hashes[seq] = written
            last, previous = seq, written
        head = connection.execute("SELECT seq, hash FROM audit_head WHERE id = 1").fetchone()
        if head and last < head[0]:
            problems.append(
                f"the log ends at line {len(lines)}, but entry {head[0]} was written: its end is cut"
            )
        elif head and hashes.get(head[0], head[1]) != head[1]:
            problems.append(f"entry {head[0]} is not the one that was written")
        if expect and expect not in hashes.values():
            problems.append(f"no line has the expected hash {expect}")
        return Verification(len(lines), previous or _FIRST, problems)


def _last_line(descriptor: int, path: Path) -> dict[str, Any] | None:
    """The last whole line; a torn one (a kill in the middle of a write, so never acknowledged) is cut off."""
    size = os.fstat(descriptor).st_size
    data = b""
    position = size
    while position > 0 and data.count(b"\n") < 2:
        step = min(1 << 16, position)
        position -= step
        data = os.pread(descriptor, step, position) + data
    if data and not data.endswith(b"\n"):
        torn = len(data) - (data.rfind(b"\n") + 1)
        os.ftruncate(descriptor, size - torn)
        data = data[: len(data) - torn]
    lines = data.splitlines()
    if not lines:
        return None
    try:
        entry = json.loads(lines[-1])
        return {"seq": int(entry["seq"]), "hash": str(entry["hash"])}
    except (ValueError, KeyError, TypeError):
        # The chain is broken already; go on after it, and `verify` will name the line.
        return {"seq": _count_lines(path), "hash": hashlib.sha256(lines[-1]).hexdigest()}


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)
