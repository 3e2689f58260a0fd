"""The workspace: a folder that holds everything Yunque made, and can say where each part came from."""

import hashlib
import json
import os
import sqlite3
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from yunque.errors import UserError
from yunque.workspace.artifact import Artifact, Kind, checked_name, parse_ref
from yunque.workspace.audit import AuditLog, Verification
from yunque.workspace.blobs import Blobs
from yunque.workspace.calls import Call, write_call
from yunque.workspace.catalog import Catalog
from yunque.workspace.environment import describe_environment
from yunque.workspace.keys import Keys


class Workspace:
    """Artifacts, blobs, keys, call log and audit log of one folder.

    Open it with `Workspace.open()`. Safe to use from several threads and processes at once.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs = root / "runs"
        self.blobs = Blobs(root / "blobs")
        self.keys = Keys(root / "keys")
        self.catalog = Catalog(root / "catalog.db")
        self.audit = AuditLog(root / "audit.jsonl", self.keys)

    @classmethod
    def open(cls, root: Path | str | None = None) -> "Workspace":
        """Open or create the workspace at `root`, else at $YUNQUE_WORKSPACE, else at ./.yunque."""
        path = Path(root or os.environ.get("YUNQUE_WORKSPACE") or ".yunque")
        try:
            # What people bring is private: nobody else on the machine may read it.
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            workspace = cls(path)
            workspace.catalog.connection()
        except OSError as error:
            raise UserError(f"{path}: cannot be a workspace ({error.strerror})") from None
        except sqlite3.DatabaseError as error:
            raise UserError(f"{path / 'catalog.db'}: is not a Yunque catalog ({error})") from None
        return workspace

    def put(
        self,
        kind: Kind,
        name: str,
        files: Mapping[str, bytes | Path],
        parents: Sequence[Artifact] = (),
        config: Mapping[str, Any] | None = None,
        figures: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """Keep `files` (bytes, or paths to copy) as the next version of `kind/name`.

        If the newest version has the same files, parents and configuration it is returned instead, so that
        doing the same work twice makes nothing new.
        """
        checked_name(name)
        digests = {path: self.blobs.put(content) for path, content in files.items()}
        refs = [parent.ref for parent in parents]
        config_text = _canonical(config or {})
        digest = _hash_of(kind, name, digests, refs, json.loads(config_text))
        with self.catalog.transaction() as connection:
            newest = connection.execute(
                "SELECT version, hash FROM artifacts WHERE kind = ? AND name = ? ORDER BY version DESC LIMIT 1",
                (kind, name),
            ).fetchone()
            if newest and newest["hash"] == digest:
                return self._load(kind, name, newest["version"])
            version = newest["version"] + 1 if newest else 1
            key = (kind, name, version)
            connection.execute(
                "INSERT INTO artifacts (kind, name, version, hash, config, figures, environment, created)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *key,
                    digest,
                    config_text,
                    _canonical(figures or {}),
                    _canonical(describe_environment()),
                    datetime.now(UTC).isoformat(timespec="seconds"),
                ),
            )
            connection.executemany(
                "INSERT INTO artifact_files VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (*key, path, sha256, self.blobs.path(sha256).stat().st_size)
                    for path, sha256 in digests.items()
                ],
            )
            connection.executemany(
                "INSERT INTO artifact_parents VALUES (?, ?, ?, ?, ?)",
                [(*key, position, ref) for position, ref in enumerate(refs)],
            )
            self.audit.append(
                connection, "artifact.put", f"{kind}/{name}@{version}", hash=digest, parents=refs
            )
        return self._load(*key)

    def get(self, ref: str, kind: Kind | None = None) -> Artifact:
        """The artifact called `[kind/]name[@version]`, the newest version if none is named.

        Raises UserError when there is none, or when the bare name belongs to several kinds.
        """
        found = self._newest(ref, kind)
        if not found:
            known = ", ".join(sorted({artifact.ref for artifact in self.list(kind or parse_ref(ref).kind)}))
            noun = kind or parse_ref(ref).kind or "artifact"
            raise UserError(
                f"no {noun} {ref!r} in the workspace {self.root} (it has: {known or 'nothing yet'})"
            )
        if len(found) > 1:
            kinds = " or ".join(f"{key[0]}/{key[1]}" for key in found)
            raise UserError(f"{ref!r} is the name of several artifacts: say {kinds}")
        return self._load(*found[0])

    def find(self, ref: str, kind: Kind | None = None) -> Artifact | None:
        """Like `get`, but None when there is no such artifact."""
        return self.get(ref, kind) if self._newest(ref, kind) else None

    def _newest(self, ref: str, kind: Kind | None) -> Sequence[tuple[str, str, int]]:
        """Kind, name and version of what `ref` names, for each kind that has it."""
        wanted = parse_ref(ref)
        if kind and wanted.kind and wanted.kind != kind:
            raise UserError(f"{ref!r} is of kind {wanted.kind}; here a {kind} is wanted")
        wanted_kind = kind or wanted.kind
        rows = self.catalog.connection().execute(
            "SELECT kind, name, max(version) FROM artifacts WHERE name = ?"
            " AND (? IS NULL OR kind = ?) AND (? IS NULL OR version = ?) GROUP BY kind",
            (wanted.name, wanted_kind, wanted_kind, wanted.version, wanted.version),
        )
        return [(row[0], row[1], row[2]) for row in rows]

    def list(self, kind: str | None = None, every_version: bool = False) -> list[Artifact]:
        """Artifacts in the order they were made; the newest version of each, unless all are asked for."""
        rows = self.catalog.connection().execute(
            "SELECT kind, name, version FROM artifacts AS a WHERE (? IS NULL OR kind = ?) AND (? OR version ="
            " (SELECT max(version) FROM artifacts AS b WHERE b.kind = a.kind AND b.name = a.name))"
            " ORDER BY rowid",
            (kind, kind, every_version),
        )
        return [self._load(*row) for row in rows.fetchall()]

    def file(self, artifact: Artifact, path: str) -> Path:
        """Where a file of an artifact lies on disk, for reading only."""
        if path not in artifact.files:
            raise UserError(
                f"{artifact.ref} has no file {path!r} (it has: {', '.join(sorted(artifact.files))})"
            )
        return self.blobs.path(artifact.files[path])

    def files(self, artifact: Artifact) -> dict[str, Path]:
        """Where all the files of an artifact lie, by name."""
        return {path: self.file(artifact, path) for path in artifact.files}

    def log_call(self, call: Call) -> int:
        """Keep a question and its answer, and return the number of the call."""
        with self.catalog.transaction() as connection:
            return write_call(connection, call)

    def record(self, action: str, ref: str, **details: Any) -> None:
        """Add a line to the audit log about something that made no artifact."""
        with self.catalog.transaction() as connection:
            self.audit.append(connection, action, ref, **details)

    def verify_audit(self, expect: str | None = None) -> Verification:
        """Check the audit log, and that every artifact is still what its line in the log says, files included."""
        found = self.audit.verify(self.catalog.connection(), expect)
        logged = {
            entry.get("details", {}).get("hash")
            for entry in self.audit.entries()
            if entry.get("action") == "artifact.put"
        }
        damaged: list[str] = []
        for one in self.list(every_version=True):
            facts = _hash_of(one.kind, one.name, one.files, one.parents, one.config)
            if facts != one.hash or one.hash not in logged:
                damaged.append(f"{one.ref}: its files, parents or configuration in the catalog were changed")
            damaged += [
                f"{one.ref}: the bytes of {path} were changed or are gone"
                for path, digest in one.files.items()
                if not self.blobs.is_intact(digest)
            ]
        return Verification(found.entries, found.head, found.problems + damaged)

    def _load(self, kind: str, name: str, version: int) -> Artifact:
        connection = self.catalog.connection()
        key = (kind, name, version)
        where = "WHERE kind = ? AND name = ? AND version = ?"
        row = connection.execute(f"SELECT * FROM artifacts {where}", key).fetchone()
        files = connection.execute(f"SELECT path, sha256 FROM artifact_files {where} ORDER BY path", key)
        parents = connection.execute(f"SELECT parent FROM artifact_parents {where} ORDER BY position", key)
        return Artifact(
            kind=kind,
            name=name,
            version=version,
            hash=row["hash"],
            files=dict(files.fetchall()),
            parents=tuple(parent for (parent,) in parents),
            config=json.loads(row["config"]),
            figures=json.loads(row["figures"]),
            environment=json.loads(row["environment"]),
            created=row["created"],
        )


def _hash_of(kind: str, name: str, files: Mapping[str, str], parents: Sequence[str], config: Any) -> str:
    """The hash of an artifact: everything that it is, and nothing of when and where it was made."""
    return hashlib.sha256(_canonical([kind, name, files, list(parents), config]).encode()).hexdigest()


def _canonical(value: Any) -> str:
    """JSON with sorted keys, so that equal values have equal text."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
