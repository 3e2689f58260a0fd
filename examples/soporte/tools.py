"""What the shop's assistant can do: each function is a tool, its types the arguments, its docstring for the model."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from typing import Any


@contextmanager
def _shop() -> Iterator[sqlite3.Connection]:
    """The shop's database for one change: all of it is kept, or none."""
    shop = sqlite3.connect(os.environ.get("SHOP_DB", "shop.db"), timeout=10)
    shop.row_factory = sqlite3.Row
    try:
        with shop:
            # Nobody else writes between what is looked at here and what is changed.
            shop.execute("BEGIN IMMEDIATE")
            yield shop
    finally:
        shop.close()


def _order(shop: sqlite3.Connection, order: str, email: str) -> sqlite3.Row:
    found = shop.execute(
        "SELECT * FROM orders WHERE id = ? AND email = ?", (order.upper(), email.lower())
    ).fetchone()
    if found is None:
        # Whoever does not know the address that bought is told the same as of an order that there is not.
        raise ValueError(f"there is no order {order} of this e-mail address")
    return found


def find_order(order: str, email: str) -> dict[str, Any]:
    """Look up an order. Needs its number (P-1001) and the e-mail address that bought it."""
    with _shop() as shop:
        found = _order(shop, order, email)
        items = shop.execute(
            "SELECT quantity, name_en, name_es, items.price FROM items JOIN products USING (sku) WHERE order_id = ?",
            (found["id"],),
        ).fetchall()
    total = sum(item["quantity"] * item["price"] for item in items)
    return {
        "order": found["id"],
        "state": found["state"],
        "placed": found["placed"],
        "delivered": found["delivered"],
        "items": [dict(item) for item in items],
        "total": round(total, 2),
    }


def cancel_order(order: str, email: str) -> dict[str, str]:
    """Cancel an order that has not left the shop yet."""
    with _shop() as shop:
        found = _order(shop, order, email)
        if found["state"] not in ("paid", "cancelled"):
            raise ValueError(f"{found['id']} is {found['state']}: it can no longer be cancelled")
        shop.execute("UPDATE orders SET state = 'cancelled' WHERE id = ?", (found["id"],))
    return {"order": found["id"], "state": "cancelled"}


def refund(order: str, email: str, amount: float, idempotency_key: str) -> dict[str, Any]:
    """Give money back for a delivered order. A person of the shop has to agree first."""
    with _shop() as shop:
        found = _order(shop, order, email)
        paid = shop.execute(
            "SELECT SUM(quantity * price) FROM items WHERE order_id = ?", (found["id"],)
        ).fetchone()[0]
        before = shop.execute(
            "SELECT COALESCE(SUM(amount), 0) FROM refunds WHERE order_id = ? AND key <> ?",
            (found["id"], idempotency_key),
        ).fetchone()[0]
        left = round(paid - before, 2)
        if found["state"] not in ("delivered", "refunded") or not 0 < amount <= left:
            raise ValueError(
                f"{amount:.2f} of {found['id']} cannot be given back: {left:.2f} are left, and it is {found['state']}"
            )
        shop.execute(
            "INSERT OR IGNORE INTO refunds VALUES (?, ?, ?, ?)",
            (idempotency_key, found["id"], amount, date.today().isoformat()),
        )
        if amount == left:
            shop.execute("UPDATE orders SET state = 'refunded' WHERE id = ?", (found["id"],))
    return {"order": found["id"], "refunded": amount}
