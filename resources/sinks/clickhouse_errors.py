"""What an error of ClickHouse means: the server is away, or a person must act.

What must always hold: no value of a row gets into a text. ClickHouse's messages quote values and
statements, so a reason is the error's number and name, and what we know about that number. Errors
of ours do not refer to the driver's error either: whoever raises one does it outside of `except`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fuploader_dagster.errors import FuploaderError, SinkRefused, SinkUnavailable
from fuploader_dagster.resources.sql.errors import NO_COLUMN

ASK_LATER = "is ClickHouse running, and can this machine reach its HTTP port?"
NO_TABLE = "create it, or correct table and url"
NO_SLOT = "ALTER TABLE {table} ADD COLUMN {column} LowCardinality(String)"
LOGIN = "check user, password and database in the url, and from where the server lets that user in"
ALLOW = "grant the user of the url SELECT, INSERT and ALTER DELETE on the table"
SLOW = "raise timeout_seconds, or find out what keeps ClickHouse busy"
SERVER_LOG = "ClickHouse's system.query_log and its log say more"
CERTIFICATE = "set ca_file to the certificate that signed the server's"
_NAME = re.compile(r"[A-Z][A-Z0-9_]{2,60}")


@dataclass(frozen=True)
class Meaning:
    """What one error means."""

    passes: bool
    """By itself, so trying again can help."""
    words: str
    """Without values."""
    hint: str


_AWAY = {
    159: ("it took too long", SLOW),
    160: ("it took too long", SLOW),
    201: ("the user's quota is used up", "raise the quota, or wait until it is counted anew"),
    202: ("too many queries run at once", SLOW),
    209: ("the server lost a connection", ASK_LATER),
    210: ("the server lost a connection", ASK_LATER),
    216: ("an earlier attempt still runs on the server", "wait until it has ended, or kill it"),
    225: ("the server has no Keeper", "look after ClickHouse Keeper or ZooKeeper"),
    236: ("the server gave up, it may be shutting down", ASK_LATER),
    241: ("the server has too little memory", "raise the user's max_memory_usage, or wait"),
    242: ("the table is read-only at the moment", "its replica may have lost Keeper"),
    243: ("the server's disk is full", "make space on the server's disk"),
    252: (
        "the table has too many parts, or the rows belong to too many partitions of the table",
        "let merges catch up, and see PARTITION BY of the table",
    ),
    285: ("too few replicas are alive", "look after the replicas, or lower insert_quorum"),
    286: ("too few replicas have confirmed", "look after the replicas, or lower insert_quorum"),
    319: ("the server does not know whether it was stored", "the next attempt looks for it"),
    341: ("deleting rows has not ended yet", "see system.mutations"),
    394: ("somebody killed the query", "try again"),
    439: ("the server has no thread free", SLOW),
    745: ("the server has too much to do", SLOW),
    999: ("the server's Keeper did not answer", "look after ClickHouse Keeper or ZooKeeper"),
}
_REFUSED = {
    16: ("the table lacks a column", NO_COLUMN),
    36: ("the server does not take the url's database or a setting", SERVER_LOG),
    47: ("the table lacks a column", NO_COLUMN),
    48: ("the table's engine cannot do that", "use an engine of the MergeTree family"),
    53: ("a column has another type by now", "try again: the table is looked at again"),
    60: ("there is no such table", NO_TABLE),
    81: ("there is no such database", "correct the database in the url or in table"),
    115: ("the server is too old", "ClickHouse 23.3 or later is needed"),
    164: ("the user may only read", "use a user who may write (readonly 0)"),
    192: ("the login was refused", LOGIN),
    193: ("the login was refused", LOGIN),
    194: ("the login was refused", LOGIN),
    344: (
        "the table does not support it",
        "a table with projections needs lightweight_mutation_projection_mode for deletions",
    ),
    452: ("the user's profile does not allow a setting", "allow it in the profile's constraints"),
    469: (
        "a row breaks a CHECK constraint of the table",
        "leave such rows out (rows), or drop the constraint",
    ),
    497: ("a right is missing", ALLOW),
    516: ("the login was refused", LOGIN),
}

_OF_A_ROW = (6, 27, 38, 41, 43, 69, 70, 72, 117, 131, 153, 190, 321, 349, 395, 407)
"""Raised by what the table computes of a row. Which row is not said."""
for _code in _OF_A_ROW:
    _REFUSED[_code] = (
        "the table cannot compute something of a row: a default, a constraint, a partition, a view",
        "leave such rows out (rows), or correct the table's expression",
    )


NO_ANSWER = Meaning(True, "no answer, or not one of ClickHouse's", ASK_LATER)
NO_TLS = Meaning(True, "the TLS handshake failed", "does that port speak TLS? See port and scheme")
NOT_TRUSTED = Meaning(False, "its certificate is not trusted", CERTIFICATE)


def meaning(code: int, name: str | None) -> Meaning:
    """Of a server's error number and its name."""
    known = name if name is not None and _NAME.fullmatch(name) else ""
    told = f"ClickHouse error {code}{f' {known}' if known else ''}"
    for table, passes in ((_AWAY, True), (_REFUSED, False)):
        if code in table:
            words, hint = table[code]
            return Meaning(passes, f"{words} ({told})", hint)
    return Meaning(True, told, SERVER_LOG)  # whoever is in doubt tries again, after growing pauses


def explained(found: Meaning, trying: str) -> FuploaderError:
    """Our error. `trying` starts its message."""
    kind = SinkUnavailable if found.passes else SinkRefused
    return kind(f"{trying}: {found.words}", hint=found.hint)
