"""Where entries that can be searched are kept: one protocol, on SQLite, Postgres and Lance."""

from yunque.apps.retrieval.stores.open import open_store
from yunque.apps.retrieval.stores.store import (
    ANY_VERSION,
    EVERYTHING,
    Between,
    Entry,
    Scope,
    Scored,
    Store,
    Value,
    Where,
)

__all__ = [
    "ANY_VERSION",
    "EVERYTHING",
    "Between",
    "Entry",
    "Scope",
    "Scored",
    "Store",
    "Value",
    "Where",
    "open_store",
]
