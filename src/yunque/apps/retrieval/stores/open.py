"""Opening a store by its address."""

from pathlib import Path

from yunque.apps.retrieval.stores.store import Store
from yunque.errors import UserError


def open_store(address: str | Path, name: str = "entries") -> Store:
    """The store at a path (SQLite), at `postgresql://...` or at `lance:FOLDER`; made if it is not there.

    `name` tells several stores in one database or folder apart. Raises UserError when an extra is not installed or
    the address cannot be opened.
    """
    text = str(address)
    if text.startswith(("postgresql://", "postgres://")):
        from yunque.apps.retrieval.stores.postgres import PostgresStore

        return PostgresStore(text, name)
    if text.startswith("lance:"):
        from yunque.apps.retrieval.stores.lance import LanceStore

        return LanceStore(Path(text.removeprefix("lance:")), name)
    if "://" in text:
        raise UserError(
            f"{text!r} is not the address of a store: use a path, postgresql://... or lance:FOLDER"
        )
    from yunque.apps.retrieval.stores.sqlite import SQLiteStore

    return SQLiteStore(Path(text))
