-- A small shop: what it sells, who bought, and what was given back.
CREATE TABLE products (sku TEXT PRIMARY KEY, name_es TEXT NOT NULL, name_en TEXT NOT NULL, price REAL NOT NULL, stock INTEGER NOT NULL);
CREATE TABLE orders (
    id TEXT PRIMARY KEY, email TEXT NOT NULL, placed TEXT NOT NULL, delivered TEXT, state TEXT NOT NULL
        CHECK (state IN ('paid', 'shipped', 'delivered', 'cancelled', 'refunded'))
);
CREATE TABLE items (
    order_id TEXT NOT NULL REFERENCES orders, sku TEXT NOT NULL REFERENCES products, quantity INTEGER NOT NULL, price REAL NOT NULL
);
-- The key makes a refund happen once, however often it is asked for.
CREATE TABLE refunds (key TEXT PRIMARY KEY, order_id TEXT NOT NULL REFERENCES orders, amount REAL NOT NULL, made TEXT NOT NULL);

INSERT INTO products VALUES
    ('Y-10', 'Yunque de 10 kg', '10 kg anvil', 89.00, 12),
    ('Y-25', 'Yunque de 25 kg', '25 kg anvil', 179.00, 0),
    ('M-01', 'Martillo de forja', 'Forging hammer', 34.50, 40),
    ('T-03', 'Tenazas de boca plana', 'Flat-jaw tongs', 27.90, 7);

INSERT INTO orders VALUES
    ('P-1001', 'ana@example.com', '2026-11-02', '2026-11-06', 'delivered'),
    ('P-1002', 'luis@example.com', '2026-11-15', NULL, 'shipped'),
    ('P-1003', 'maria@example.com', '2026-11-19', NULL, 'paid'),
    ('P-1004', 'tom@example.com', '2026-08-30', '2026-09-03', 'delivered');

INSERT INTO items VALUES
    ('P-1001', 'M-01', 1, 34.50), ('P-1001', 'T-03', 2, 27.90),
    ('P-1002', 'Y-10', 1, 89.00),
    ('P-1003', 'T-03', 1, 27.90),
    ('P-1004', 'Y-10', 1, 89.00);
