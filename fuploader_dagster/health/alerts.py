"""Alerts: what a person is told about a pipeline, and when. Pure decisions; nothing is sent here.

What must always hold: each trouble is reported once, when it has lasted longer than its grace, and
its end once, however many looks see it and whichever process looks: what was reported is in a
`Memory` that outlives the process. An alert counts as reported only after it was delivered: until
then `due` returns it again, even if the trouble has ended by then.

    memory = noticed(memory, findings, now)     # what a look has found
    for alert in due(memory, now):
        ...post it...
        memory = told(memory, alert, now)       # only if it was delivered

A trouble may have several causes (`Trouble.causes`): while it lasts, each new one is reported too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from fuploader_dagster.settings.safe_text import in_a_line

Kind = Literal[
    "drain",
    "store",
    "processor",
    "sinks",
    "notices",
    "disk",
    "dead_letters",
    "failed_slots",
    "damaged",
    "lost",
    "failed_run",
]

MAX_CAUSES = 50
"""Maximum number to remember for each trouble; further ones are not reported."""
REPEATED_SECONDS = 3600.0
"""A failed run that left no failed slot is reported at most once in this time per cause."""

GRACE_SECONDS: Mapping[str, float] = {"drain": 30.0, "store": 30.0, "sinks": 60.0, "notices": 60.0}
"""How long a trouble has to last, and to be over, before that is reported: a server's restart
alerts nobody. Other kinds have waited already: for retries, or for a limit."""

_ENDS: Mapping[str, str] = {
    "drain": "drains again",
    "store": "reaches its object store again",
    "processor": "processes its slots again",
    "sinks": "stores rows in all its sinks again",
    "notices": "tells of its tasks again",
    "disk": "has enough disk space again",
    "dead_letters": "is below max_dead_letters_per_hour again",
    "failed_slots": "has no failed slots any more",
    "damaged": "has no damaged directories in set-aside/ any more",
    "lost": "has, or has written off, everything that was acknowledged",
}


@dataclass(frozen=True)
class Trouble:
    """One thing that is wrong, in a sentence."""

    kind: Kind
    sentence: str
    since: float
    """Seconds since 1970; when it was first seen if nobody knows more."""
    causes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    """For programs; part of the alert."""


@dataclass(frozen=True)
class Findings:
    """What a look has found."""

    troubles: tuple[Trouble, ...] = ()
    unknown: Collection[str] = ()
    """Kinds that could not be looked at: what is known about them stays."""
    endings: Mapping[str, str] = field(default_factory=dict)
    """Why the trouble of a kind ends, if not because it is solved."""


class Episode(msgspec.Struct, frozen=True, kw_only=True):
    """A trouble from its beginning to its end, and what was reported about it."""

    kind: Kind
    since: float
    sentence: str
    causes: tuple[str, ...] = ()
    details: dict[str, Any] = {}
    is_due: bool = False
    """It has lasted longer than its grace."""
    told_at: float = 0.0
    """0 until it was reported."""
    told_causes: tuple[str, ...] = ()
    over_since: float = 0.0
    """0 while it lasts."""
    ending: str = ""


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong and what was reported, by kind (for a failed run by kind and cause)."""

    episodes: dict[str, Episode] = {}
    runs_until: float = 0.0
    """Failed runs are known up to this time."""
    runs_known: tuple[str, ...] = ()


@dataclass(frozen=True)
class Alert:
    """Something to post."""

    key: str
    state: Literal["trouble", "over"]
    episode: Episode

    def message(self, *, pipeline: str, node: str) -> dict[str, Any]:
        """The JSON to post. `text` is for people; chat tools show it."""
        one, where = self.episode, f"{pipeline} on {node}"
        if self.state == "trouble":
            text = f"{where}: {one.sentence} (since {_moment(one.since)})"
            if one.over_since:
                text += f" It ended at {_moment(one.over_since)}."
        else:
            text = f"{where} {one.ending or _ENDS[one.kind]} (trouble since {_moment(one.since)})"
        return {
            "text": in_a_line(text),
            "pipeline": pipeline,
            "node": node,
            "alert": one.kind,
            "state": self.state,
            "since": datetime.fromtimestamp(one.since, timezone.utc).isoformat(timespec="seconds"),
            "problem": one.sentence,
            **(one.details if self.state == "trouble" else {}),
        }


def noticed(memory: Memory, findings: Findings, now: float) -> Memory:
    """The memory after a look."""
    found = {_key(trouble): trouble for trouble in findings.troubles}
    known = {key: one for key, one in memory.episodes.items() if not _is_done(one, now)}
    episodes = {}
    for key, before in known.items():
        if before.kind in findings.unknown or before.over_since:
            episodes[key] = before
        elif before.is_due:
            ending = findings.endings.get(before.kind, "")
            episodes[key] = replace(before, over_since=now, ending=ending)
    for key, trouble in found.items():
        episodes[key] = _continued(known.get(key), trouble, now)
    return replace(memory, episodes=episodes)


def due(memory: Memory, now: float) -> Iterator[Alert]:
    """The alerts to send now; the beginning of a trouble comes before its end."""
    for key, one in memory.episodes.items():
        if one.is_due and (not one.told_at or set(one.causes) - set(one.told_causes)):
            yield Alert(key, "trouble", one)
        over_long = one.over_since and now - one.over_since >= GRACE_SECONDS.get(one.kind, 0)
        if one.is_due and over_long and one.kind in _ENDS:
            yield Alert(key, "over", one)


def told(memory: Memory, alert: Alert, now: float) -> Memory:
    """The memory after the alert was delivered."""
    episodes = dict(memory.episodes)
    if alert.state == "over":
        del episodes[alert.key]
    else:
        causes = dict.fromkeys((*alert.episode.told_causes, *alert.episode.causes))
        episodes[alert.key] = replace(
            episodes[alert.key], told_at=now, told_causes=tuple(causes)[:MAX_CAUSES]
        )
    return replace(memory, episodes=episodes)


def _key(trouble: Trouble) -> str:
    return f"{trouble.kind} {trouble.causes}" if trouble.kind == "failed_run" else trouble.kind


def _continued(before: Episode | None, trouble: Trouble, now: float) -> Episode:
    known = before.told_causes if before else ()
    room = max(0, MAX_CAUSES - len(known))
    new = tuple(cause for cause in trouble.causes if cause not in known)[:room]
    since = min(trouble.since, now, before.since if before else now)
    fresh = Episode(kind=trouble.kind, since=since, sentence="") if before is None else before
    return replace(
        fresh,
        since=since,
        sentence=trouble.sentence,
        causes=new + tuple(cause for cause in trouble.causes if cause in known),
        details=dict(trouble.details),
        is_due=fresh.is_due or now - since >= GRACE_SECONDS.get(trouble.kind, 0),
        over_since=0.0,
        ending="",
    )


def _is_done(one: Episode, now: float) -> bool:
    """Whether it can be forgotten. Only failed runs: their end cannot be seen."""
    return one.kind == "failed_run" and one.told_at > 0 and now - one.told_at >= REPEATED_SECONDS


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M} UTC"
