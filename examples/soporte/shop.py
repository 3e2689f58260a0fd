"""Makes the shop's database, `shop.db`, anew from `shop.sql`."""

import sqlite3
from contextlib import closing
from pathlib import Path

here = Path(__file__).parent
Path("shop.db").unlink(missing_ok=True)
with closing(sqlite3.connect("shop.db")) as shop:
    shop.executescript((here / "shop.sql").read_text(encoding="utf-8"))
    orders = shop.execute("SELECT COUNT(*) FROM orders").fetchone()[0]
print(f"shop.db: {orders} orders")
