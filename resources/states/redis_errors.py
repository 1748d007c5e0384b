"""What an error of Redis means: which of our errors it becomes, and what a person can do.

What must always hold: what passes by itself becomes a `TemporaryError`, what needs a person a
`PermanentError`. Which of them, and what is said about keys and rights, is up to the `Asker`. Redis
starts its errors with a word (`READONLY`, `OOM`). redis-py turns most of them into classes and
drops the word; servers before version 7 put it into the middle if a script met it. So the class's
name and the text are searched together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import redis

from fuploader_dagster.errors import (
    FuploaderError,
    PermanentError,
    StateRefused,
    StateUnavailable,
    TemporaryError,
)


@dataclass(frozen=True)
class Asker:
    """Who uses Redis: its errors, and what a person can do about its keys."""

    refused: type[PermanentError]
    unavailable: type[TemporaryError]
    rights: str
    """The page with the rights that it needs."""
    other_type: str
    """What to do about a key that holds something else."""
    waits: bool = False
    """Whether it waits for a server that accepts no changes: full, a replica, cannot save."""


STATE = Asker(
    StateRefused,
    StateUnavailable,
    "the section on rights in Redis of docs/operations.md",
    "something else uses these keys: set another key_prefix, or remove the key; its content is "
    "rebuilt from the disk",
)
_ARGUMENTS = re.compile(r",? with args beginning with:.*", re.DOTALL)
"""A server that does not know AUTH or HELLO repeats their arguments: the password."""
_MOST_CHARACTERS = 300
_MOST_OF_A_VALUE = 60

_REFUSED = {
    r"AuthenticationError|WRONGPASS|NOAUTH|without any password configured": "check user and "
    "password in the url: the server expects others, or none",
    r"NoPermissionError|NOPERM|user executing the script can't": "give this user the commands "
    "and keys listed in {rights}",
    r"(?i)unknown (redis )?command": "allow the commands listed in {rights}; is this a Redis "
    "server, and not a Sentinel or a proxy?",
    r"(?i)DB index|invalid database|SELECT is not allowed": "name a database that the server has "
    "in the url: /0 always exists, a cluster has no other",
    r"WRONGTYPE": "{other_type}",
    r"CROSSSLOT|ClusterCrossSlotError": "a cluster keeps these keys on different nodes: put a part "
    "of the name into braces, such as {{orders}}, and they stay together",
    r"(?i)CERTIFICATE_VERIFY_FAILED": "trust the certificate's issuer on this machine, or name "
    "its file in the url: ?ssl_ca_certs=/path",
    r"WRONG_VERSION_NUMBER|record layer failure": "the server does not speak TLS on this port: "
    "use redis:// in the url, or its TLS port",
    r"InvalidResponse|Protocol Error": "the server at this address is not Redis: check host and "
    "port in the url",
}
"""Pattern of what needs a person, and what to do."""
_NO_CHANGES = {
    r"ReadOnlyError|READONLY": "this is a replica: name the master in the url",
    r"MISCONF": "the server cannot write to its own disk and refuses changes until it can: check "
    "its log, and free or repair that disk",
    r"OutOfMemoryError|\bOOM\b": "the server's memory is full: raise its maxmemory, remove other "
    "data from it, or give the pipeline a Redis of its own",
}
"""Pattern of a server that accepts no changes, and what to do."""
_PASSING = {
    r"AskError|TryAgainError|TRYAGAIN": "the cluster is moving these keys to another node; name "
    "that node in the url afterwards",
    r"MasterDownError|MASTERDOWN": "this is a replica that has lost its master: name the master "
    "in the url",
    r"ClusterDownError|CLUSTERDOWN": "the cluster has no working node for these keys: bring back "
    "the nodes that are missing",
    r"BusyLoadingError|LOADING": "the server has just started and is loading its data: wait",
    r"max number of clients": "the server has its maximum number of clients: raise its "
    "maxclients, or close some",
    r"MasterNotFoundError": "the Sentinels name no master that works: do they know this name (the "
    "first part of the url's path), and is a failover going on?",
    r"NOREPLICAS": "the server accepts no changes without its replicas: bring them back",
    r"\bBUSY\b": "a script is blocking the server: find out what is running there",
}
"""Pattern of what passes by itself, and what to do if it does not."""


def explained(
    error: Exception, trying: str, *, more: str = "", asker: Asker = STATE
) -> FuploaderError:
    """Our error for one of Redis's. `trying` starts its message, `more` ends its hint."""
    text = f"{type(error).__name__}: {error}"
    kind, hint = _meaning(error, text, asker)
    word = getattr(error, "status_code", None)  # MOVED and the like, which redis-py drops
    words = f"{word} {error}" if word and word != "ERR" else str(error)
    words = _ARGUMENTS.sub("", words)
    said = shown(words, _MOST_CHARACTERS) if words else type(error).__name__
    return kind(f"{trying}: {said}", hint=f"{hint}; {more}" if more else hint)


def _meaning(error: Exception, text: str, asker: Asker) -> tuple[type[FuploaderError], str]:
    if isinstance(error, redis.exceptions.MovedError):
        return asker.refused, (
            f"this node of a cluster does not have the pipeline's keys: name the node that does, "
            f"{error.node_addr[0]}:{error.node_addr[1]}, in the url"
        )
    for kind, hints in (
        (asker.refused, _REFUSED),
        (asker.unavailable if asker.waits else asker.refused, _NO_CHANGES),
        (asker.unavailable, _PASSING),
    ):
        for pattern, hint in hints.items():
            if re.search(pattern, text):
                return kind, hint.format(rights=asker.rights, other_type=asker.other_type)
    if isinstance(error, redis.ResponseError):
        return asker.refused, "check the server's log"
    return asker.unavailable, (
        "is Redis running, and can this machine reach it? The url starts with rediss:// if the "
        "server speaks TLS, otherwise with redis://"
    )


def shown(text: str, most: int = _MOST_OF_A_VALUE) -> str:
    """Text from outside for a log line: printable, on one line, and cut."""
    printable = text if text.isprintable() and text.strip() else repr(text)
    left_out = len(printable) - most
    return printable if left_out <= 0 else f"{printable[:most]}... and {left_out:,} characters more"
