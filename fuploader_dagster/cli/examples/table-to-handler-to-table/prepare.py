"""Makes both tables, with 200 documents; `--show` tells what is in the table of results."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing

CITIES = ("Lisbon", "Osaka", "Nairobi", "Lima")


def prepare(database: sqlite3.Connection) -> None:
    database.execute("CREATE TABLE source_data (mid TEXT PRIMARY KEY, text TEXT)")
    database.execute("CREATE TABLE doc_ent_map (doc_id TEXT PRIMARY KEY, ent_list_str TEXT)")
    documents = [
        (f"doc-{n:03d}", f"a ship from {CITIES[n % 4]} to {CITIES[n % 3]}") for n in range(200)
    ]
    database.executemany("INSERT INTO source_data VALUES (?, ?)", documents)
    database.commit()


def show(database: sqlite3.Connection) -> None:
    (count,) = database.execute("SELECT count(*) FROM doc_ent_map").fetchone()
    print(f"{count} documents have a result")
    for row in database.execute("SELECT * FROM doc_ent_map ORDER BY 1 LIMIT 3"):
        print(*row)


if __name__ == "__main__":
    with closing(sqlite3.connect("shop.sqlite")) as opened:
        (show if "--show" in sys.argv else prepare)(opened)
