"""Alerts: what a person is told of a pipeline, and when. Pure decisions; nothing is sent here.

What must always hold: each trouble is told once when it has lasted longer than its grace, and its
end once, however many looks see it, and whatever process makes them: what was told is in a `Memory`
that outlives the process. An alert counts as told only when it was delivered: `due` gives it again
until then, also when the trouble is over by that time.

    memory = noticed(memory, looked, now)       # what a look has found
    for alert in due(memory, now):
        ...post it...
        memory = told(memory, alert, now)       # only if it was delivered

A trouble may have causes that differ (`Trouble.causes`): while it lasts, a new one is told as well.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Literal

import msgspec

from fuploader_dagster.settings.safe_text import in_a_line

Kind = Literal["drain", "store", "disk", "dead_letters", "failed_slots", "damaged", "failed_run"]

MAX_CAUSES = 50
"""Remembered for each trouble; later ones are not told apart."""
REPEATED_SECONDS = 3600.0
"""A failed run that left no failed slot is told once an hour at most for each cause."""

GRACE_SECONDS: Mapping[str, float] = {"drain": 30.0, "store": 30.0}
"""How long a trouble lasts before it is told, and how long it is over before that is told: a broker
that restarts calls nobody. The others have waited before: for retries, for a mark with a margin."""

_ENDS: Mapping[str, str] = {
    "drain": "drains again",
    "store": "reaches its object store again",
    "disk": "has room again",
    "dead_letters": "is below its mark of dead letters again",
    "failed_slots": "has no failed slots any more",
    "damaged": "has no damaged slots in set-aside any more",
}


@dataclass(frozen=True)
class Trouble:
    """What a look has found, in a sentence."""

    kind: Kind
    sentence: str
    since: float
    """Seconds since 1970, as far as the look knows."""
    causes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    """For programs; part of the alert."""


@dataclass(frozen=True)
class Looked:
    """All that a look has found."""

    troubles: tuple[Trouble, ...] = ()
    unknown: Collection[str] = ()
    """Kinds that could not be looked at: what was known of them stays."""
    endings: Mapping[str, str] = field(default_factory=dict)
    """Kinds whose trouble ends for another reason than that all is well, and which."""


class Episode(msgspec.Struct, frozen=True, kw_only=True):
    """A trouble from its beginning to its end, and what was told of it."""

    kind: Kind
    since: float
    sentence: str
    causes: tuple[str, ...] = ()
    details: dict[str, Any] = {}
    is_due: bool = False
    """It has lasted longer than its grace."""
    told_at: float = 0.0
    """0 as long as nobody was told."""
    told_causes: tuple[str, ...] = ()
    over_since: float = 0.0
    """0 while it lasts."""
    ending: str = ""


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What is going on and what was told, by the kind (a failed run also by its cause)."""

    episodes: dict[str, Episode] = {}
    runs_until: float = 0.0
    """Runs that failed before are known."""
    runs_known: tuple[str, ...] = ()


@dataclass(frozen=True)
class Alert:
    """What is to be posted."""

    key: str
    state: Literal["trouble", "over"]
    episode: Episode

    def message(self, *, pipeline: str, node: str) -> dict[str, Any]:
        """The JSON. `text` is for people, and what chat tools show."""
        one, where = self.episode, f"{pipeline} on {node}"
        if self.state == "trouble":
            text = f"{where}: {one.sentence} (since {_moment(one.since)})"
            if one.over_since:
                text += f" It was over at {_moment(one.over_since)}."
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


def noticed(memory: Memory, looked: Looked, now: float) -> Memory:
    """What is known after a look."""
    found = {_key(trouble): trouble for trouble in looked.troubles}
    known = {key: one for key, one in memory.episodes.items() if not _is_done(one, now)}
    episodes = {}
    for key, before in known.items():
        if before.kind in looked.unknown or before.over_since:
            episodes[key] = before
        elif before.is_due:
            ending = looked.endings.get(before.kind, "")
            episodes[key] = _replaced(before, over_since=now, ending=ending)
    for key, trouble in found.items():
        episodes[key] = _goes_on(known.get(key), trouble, now)
    return msgspec.structs.replace(memory, episodes=episodes)


def due(memory: Memory, now: float) -> Iterator[Alert]:
    """What is to be told now; the beginning of a trouble before its end."""
    for key, one in memory.episodes.items():
        if one.is_due and (not one.told_at or set(one.causes) - set(one.told_causes)):
            yield Alert(key, "trouble", one)
        over_long = one.over_since and now - one.over_since >= GRACE_SECONDS.get(one.kind, 0)
        if one.is_due and over_long and one.kind in _ENDS:
            yield Alert(key, "over", one)


def told(memory: Memory, alert: Alert, now: float) -> Memory:
    """What is known when the alert was delivered."""
    episodes = dict(memory.episodes)
    if alert.state == "over":
        del episodes[alert.key]
    else:
        causes = dict.fromkeys((*alert.episode.told_causes, *alert.episode.causes))
        episodes[alert.key] = _replaced(
            episodes[alert.key], told_at=now, told_causes=tuple(causes)[:MAX_CAUSES]
        )
    return msgspec.structs.replace(memory, episodes=episodes)


def _key(trouble: Trouble) -> str:
    return f"{trouble.kind} {trouble.causes}" if trouble.kind == "failed_run" else trouble.kind


def _goes_on(before: Episode | None, trouble: Trouble, now: float) -> Episode:
    known = before.told_causes if before else ()
    room = max(0, MAX_CAUSES - len(known))
    new = tuple(cause for cause in trouble.causes if cause not in known)[:room]
    since = min(trouble.since, now, before.since if before else now)
    fresh = Episode(kind=trouble.kind, since=since, sentence="") if before is None else before
    return _replaced(
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
    """Whether nothing more will be told of it: a failed run has no end that could be seen."""
    return one.kind == "failed_run" and one.told_at > 0 and now - one.told_at >= REPEATED_SECONDS


def _replaced(one: Episode, **values: Any) -> Episode:
    return msgspec.structs.replace(one, **values)


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M} UTC"
