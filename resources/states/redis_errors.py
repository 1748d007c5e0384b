"""What an error of Redis means: of which kind of ours it is, and what a person can do.

What must always hold: `StateUnavailable` passes by itself, `StateRefused` needs a person. Redis
begins its errors with a word (`READONLY`, `OOM`); redis-py makes classes of most of them and takes
the word away; servers before version 7 put it into the middle when a script met it. So the class's
name and the text are looked at together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import redis

from fuploader_dagster.errors import FuploaderError, StateRefused, StateUnavailable

RIGHTS = "the section on rights in Redis of docs/operations.md"
_ARGUMENTS = re.compile(r",? with args beginning with:.*", re.DOTALL)
"""A server that does not know AUTH or HELLO repeats their arguments: the password."""
_MOST_CHARACTERS = 300
_MOST_OF_A_VALUE = 60


@dataclass(frozen=True)
class _Meaning:
    pattern: str
    kind: type[FuploaderError]
    hint: str


_MEANINGS = (
    _Meaning(
        r"AuthenticationError|WRONGPASS|NOAUTH|without any password configured",
        StateRefused,
        "check user and password in the url: the server wants others, or none",
    ),
    _Meaning(
        r"NoPermissionError|NOPERM|user executing the script can't",
        StateRefused,
        f"give this user the commands and keys listed in {RIGHTS}",
    ),
    _Meaning(
        r"(?i)unknown (redis )?command",
        StateRefused,
        f"have the server allow the commands listed in {RIGHTS}; is it a Redis server itself, and "
        "no Sentinel or proxy?",
    ),
    _Meaning(
        r"ReadOnlyError|READONLY",
        StateRefused,
        "this is a replica: name the master in the url",
    ),
    _Meaning(
        r"MISCONF",
        StateRefused,
        "the server cannot write to its own disk and refuses changes until it can: look at its "
        "log, and free or repair that disk",
    ),
    _Meaning(
        r"OutOfMemoryError|\bOOM\b",
        StateRefused,
        "the server's memory is full: raise its maxmemory, remove other data from it, or give the "
        "pipeline a Redis of its own",
    ),
    _Meaning(
        r"(?i)DB index|invalid database|SELECT is not allowed",
        StateRefused,
        "name a database in the url that the server has; /0 always exists, a cluster has no other",
    ),
    _Meaning(
        r"AskError|TryAgainError|TRYAGAIN",
        StateUnavailable,
        "the cluster is moving these keys to another node; name that node in the url afterwards",
    ),
    _Meaning(
        r"MasterDownError|MASTERDOWN",
        StateUnavailable,
        "this is a replica that has lost its master: name the master in the url",
    ),
    _Meaning(
        r"ClusterDownError|CLUSTERDOWN",
        StateUnavailable,
        "the cluster has no working node for these keys: bring back the nodes that are missing",
    ),
    _Meaning(
        r"BusyLoadingError|LOADING",
        StateUnavailable,
        "the server reads its data after a start; nothing to do but wait",
    ),
    _Meaning(
        r"max number of clients",
        StateUnavailable,
        "the server has as many clients as it may: raise its maxclients, or close some",
    ),
    _Meaning(
        r"NOREPLICAS",
        StateUnavailable,
        "the server takes no changes without its replicas: bring them back",
    ),
    _Meaning(
        r"\bBUSY\b",
        StateUnavailable,
        "somebody's script holds the server up: see what runs there",
    ),
    _Meaning(
        r"WRONGTYPE",
        StateRefused,
        "something else uses these keys: set another key_prefix, or remove the key; what it should "
        "hold is made again from the disk",
    ),
    _Meaning(
        r"(?i)CERTIFICATE_VERIFY_FAILED",
        StateRefused,
        "trust the certificate's issuer on this machine, or name its file in the url: "
        "?ssl_ca_certs=/path",
    ),
    _Meaning(
        r"WRONG_VERSION_NUMBER|record layer failure",
        StateRefused,
        "the server speaks no TLS here: use redis:// in the url, or its TLS port",
    ),
    _Meaning(
        r"InvalidResponse|Protocol Error",
        StateRefused,
        "what answers there is no Redis: check host and port in the url",
    ),
)


def explained(error: Exception, trying: str, *, more: str = "") -> FuploaderError:
    """An error of ours for one of Redis's. `trying` begins its sentence, `more` ends its hint."""
    text = f"{type(error).__name__}: {error}"
    kind, hint = _meaning(error, text)
    word = getattr(error, "status_code", None)  # MOVED and its like, which redis-py takes away
    words = f"{word} {error}" if word and word != "ERR" else str(error)
    words = _ARGUMENTS.sub("", words)
    said = shown(words, _MOST_CHARACTERS) if words else type(error).__name__
    return kind(f"{trying}: {said}", hint=f"{hint}; {more}" if more else hint)


def _meaning(error: Exception, text: str) -> tuple[type[FuploaderError], str]:
    if isinstance(error, redis.exceptions.MovedError):
        return StateRefused, (
            f"this node of a cluster does not keep the pipeline's keys: name the node that does, "
            f"{error.node_addr[0]}:{error.node_addr[1]}, in the url"
        )
    for meaning in _MEANINGS:
        if re.search(meaning.pattern, text):
            return meaning.kind, meaning.hint
    if isinstance(error, redis.ResponseError):
        return StateRefused, "see the server's log"
    return StateUnavailable, (
        "is Redis running, and can this machine reach it? The url begins with rediss:// where it "
        "speaks TLS, with redis:// where it does not"
    )


def shown(text: str, most: int = _MOST_OF_A_VALUE) -> str:
    """Text of a stranger for a log line: printable, on one line, and cut."""
    printable = text if text.isprintable() and text.strip() else repr(text)
    left_out = len(printable) - most
    return printable if left_out <= 0 else f"{printable[:most]}... and {left_out:,} characters more"
