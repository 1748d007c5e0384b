"""Judges how a pipeline is doing: in the UI, `fuploader status` and `fuploader doctor` alike.

Each judgement is the result of an asset check of its name. What must always hold: judging is a
function of what was read (`Look`); a look changes nothing; what cannot be told does not pass, it is
a warning. Where trouble has an alert too, its words are those of the alert (`alert_look`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone

from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.dead_letters.counts import DeadLetterCounts, read_counts
from fuploader_dagster.health.alert_look import (
    disk_trouble,
    store_refusal,
    store_trouble,
    why_nobody_drains,
)
from fuploader_dagster.health.balance import Balance, balance, lost_in_words, what_to_do
from fuploader_dagster.health.figures import (
    Figures,
    Queue,
    Rates,
    disk_days_left,
    figures_of,
    rates,
    reading_of,
)
from fuploader_dagster.health.remembered import Reading, readings
from fuploader_dagster.settings.pipeline import Pipeline

OF_THE_STATE_STORE = "see what `fuploader doctor` says of the state store"
TREND_SECONDS = 600.0
"""A queue that grows, or a disk that fills, for less than this may only have met a burst."""


@dataclass(frozen=True)
class Look:
    """What was read."""

    figures: Figures
    balance: Balance
    letters: DeadLetterCounts
    store_trouble: str
    disk_trouble: str
    before: Reading | None = None
    """The oldest reading of the last hour."""
    last: Reading | None = None
    """The newest one before this look."""

    @property
    def rates(self) -> Rates | None:
        """Since the last reading."""
        return rates(self.last, reading_of(self.figures)) if self.last else None

    @property
    def trend(self) -> Rates | None:
        """Over the last hour, or as much of it as is known."""
        return rates(self.before, reading_of(self.figures)) if self.before else None

    def disk_days_left(self, pipeline: Pipeline) -> float | None:
        if self.before is None or self.figures.at - self.before.at < TREND_SECONDS:
            return None
        return disk_days_left(self.before, reading_of(self.figures), pipeline.min_free_bytes)


@dataclass(frozen=True)
class Judgement:
    """What is to be thought of one thing."""

    check: str
    found: str
    hint: str = ""
    """What to do; empty if nothing is wrong."""
    serious: bool = True
    """False: it works, or is meant, but a person should know."""
    numbers: Mapping[str, int | float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return not self.hint

    def diagnosis(self) -> Diagnosis:
        """The same as a line of `fuploader doctor`."""
        if self.passed:
            return Diagnosis(self.check, "good", self.found)
        return Diagnosis(self.check, "wrong" if self.serious else "warning", self.found, self.hint)


def look(pipeline: Pipeline, queue: Queue | None = None) -> Look:
    """Read everything that is judged. `queue`: what it answered already; else it is asked."""
    figures, known = figures_of(pipeline, queue), readings(pipeline.layout)
    known = [one for one in known if one.at < figures.at]
    store = store_trouble(pipeline) or store_refusal(pipeline)
    disk = disk_trouble(pipeline, figures.at, paused=False)
    return Look(
        figures,
        balance(pipeline.layout, figures.snapshot),
        read_counts(pipeline.layout),
        store.sentence if store else "",
        disk.sentence if disk else "",
        known[0] if known else None,
        known[-1] if known else None,
    )


def judge(pipeline: Pipeline, seen: Look) -> list[Judgement]:
    """All judgements, in the order in which a message meets what they are about."""
    return [
        being_drained(pipeline, seen.figures),
        keeping_up(pipeline, seen),
        disk_room(pipeline, seen),
        nothing_lost(seen),
        store_reachable(seen),
        dead_letters_below_limit(pipeline, seen),
    ]


def being_drained(pipeline: Pipeline, figures: Figures) -> Judgement:
    """Whether somebody takes the messages that wait."""
    name, waiting, intake = "being_drained", figures.queue.waiting, figures.wishes.intake
    numbers = {"waiting": waiting or 0, "consumers": figures.consumers}
    if waiting is None:
        found = f"nobody can say what waits: {figures.queue.trouble}"
        return Judgement(name, found, "see what `fuploader doctor` says of the queue")
    if figures.consumers:
        found = (
            f"{counted(figures.consumers, 'worker takes', 'workers take')} messages; "
            f"{waiting:,} wait"
        )
        return Judgement(name, found, numbers=numbers)
    if waiting == 0:
        paused = f"; intake is paused {intake}" if intake.paused else ""
        return Judgement(name, f"nothing waits{paused}", numbers=numbers)
    depth = figures.queue.depth
    if pipeline.node_id and depth and depth.in_hand:
        found = (
            f"{counted(waiting, 'message waits', 'messages wait')}, and other nodes have "
            f"{depth.in_hand:,} in hand"
        )
        return Judgement(name, found, numbers=numbers)
    if intake.paused:
        found = f"{counted(waiting, 'message waits', 'messages wait')}: intake is paused {intake}"
        hint = f"`fuploader resume {pipeline.name}` ends the pause"
        return Judgement(name, found, hint, serious=False, numbers=numbers)
    why = why_nobody_drains(pipeline, figures.workers, figures.at)
    found = (
        f"{counted(waiting, 'message waits', 'messages wait')} in {pipeline.source.describe()} "
        f"and nobody drains it: {why}"
    )
    if pipeline.drain_by == "command":
        hint = "start `fuploader drain` on this machine"
    else:
        hint = "switch on the pipeline's drain sensor in Dagster, or see what its ticks say"
    return Judgement(name, found, hint, numbers=numbers)


def keeping_up(pipeline: Pipeline, seen: Look) -> Judgement:
    """Whether messages are stored in time, and the queue is drained faster than it grows."""
    shipping, late = seen.figures.wishes.shipping, _late(pipeline, seen.figures)
    growth = _growth(pipeline, seen)
    seconds = round(seen.figures.oldest_unshipped_seconds, 1)
    numbers: dict[str, int | float] = {"oldest_unshipped_seconds": seconds}
    if not late and not growth:
        if unknown := _unknown(pipeline, seen.figures):
            found = f"whether messages are stored in time cannot be told: {unknown.found}"
            return Judgement("keeping_up", found, unknown.hint, serious=False, numbers=numbers)
        found = f"the oldest message that is not in the object store waits {seconds:,.0f} s"
        return Judgement("keeping_up", found, numbers=numbers)
    meant = shipping.paused and not growth
    paused = f"shipping is paused {shipping}" if shipping.paused else ""
    hints = [
        f"`fuploader resume {pipeline.name}` ends the pause" if late and paused else "",
        "see which partitions failed: `fuploader status`" if late and not paused else "",
        "raise process_count, or drain on another node too" if growth else "",
    ]
    return Judgement(
        "keeping_up",
        "; ".join(filter(None, [paused, late, growth])),
        "; ".join(filter(None, hints)),
        serious=not meant,
        numbers=numbers,
    )


def _late(pipeline: Pipeline, figures: Figures) -> str:
    """That messages should be stored by now, in a sentence; empty if none have to be."""
    most, since = (
        pipeline.seal_age_seconds + pipeline.late_after_seconds,
        figures.oldest_unshipped_at,
    )
    if since is None or figures.oldest_unshipped_seconds <= most:
        return ""
    begun = datetime.fromtimestamp(since, tz=timezone.utc)
    return (
        f"messages wait for the object store since {begun:%Y-%m-%d %H:%M:%S} UTC, longer than "
        f"seal_age_seconds and late_after_seconds together ({most:,.0f} s)"
    )


def _unknown(pipeline: Pipeline, figures: Figures) -> Judgement | None:
    """Why nobody can tell when the messages that wait will be stored; None if they are taken, or
    if none waits."""
    drained = being_drained(pipeline, figures)
    if not drained.passed:
        return drained
    if figures.queue.waiting and figures.snapshot is None:
        found = f"the state store does not say how fast messages are taken: {figures.state_trouble}"
        return Judgement("keeping_up", found, OF_THE_STATE_STORE)
    return None


def _growth(pipeline: Pipeline, seen: Look) -> str:
    """What a queue that grows faster than it is drained means, in a sentence; empty if it does
    not."""
    before, trend, waiting = seen.before, seen.trend, seen.figures.queue.waiting
    if before is None or trend is None or before.waiting is None or waiting is None:
        return ""
    if trend.seconds < TREND_SECONDS or waiting <= before.waiting or not seen.figures.consumers:
        return ""
    rate = trend.messages_in
    if rate is None or waiting <= rate * pipeline.late_after_seconds:
        return ""
    takes = f"{waiting / rate:,.0f} s" if rate else "for ever"
    return (
        f"{counted(waiting, 'message waits', 'messages wait')}, "
        f"{waiting - before.waiting:,} more than {trend.seconds:,.0f} s "
        f"ago; at {rate:,.1f} messages/s it takes {takes} to drain them"
    )


def disk_room(pipeline: Pipeline, seen: Look) -> Judgement:
    """Whether the disk can take more messages, today and tomorrow."""
    space, days = seen.figures.space, seen.disk_days_left(pipeline)
    numbers: dict[str, int | float] = {"free_bytes": space.free_bytes}
    numbers |= {"days_left": round(days, 2)} if days is not None else {}
    if seen.disk_trouble:
        hint = "make room on the disk; messages wait in the queue until then"
        return Judgement("disk_room", seen.disk_trouble, hint, numbers=numbers)
    found = f"{space.free_bytes:,} bytes are free"
    if days is not None and days < 1:
        found += f"; as it fills now, the drain pauses for lack of space in {days * 24:.1f} hours"
        hint = "find out what fills the disk: `fuploader status` says what is not uploaded yet"
        return Judgement("disk_room", found, hint, serious=False, numbers=numbers)
    if days is not None:
        found += f", enough for {days:,.1f} days as it fills now"
    return Judgement("disk_room", found, numbers=numbers)


def nothing_lost(seen: Look) -> Judgement:
    """Whether all that was acknowledged is somewhere."""
    sums = seen.balance
    places = {place: sums.total(place) for place in ("stored", "waiting", "replaced", "aside")}
    lost = sum(one.messages for one in sums.lost)
    numbers = {"sealed": sums.sealed_messages, **places, "active": sums.active_messages}
    numbers["lost"] = lost
    said = ", ".join(f"{count:,} {place}" for place, count in places.items() if count)
    slots = sum(day.slots for day in sums.days.values())
    since = f" since {min(sums.days)}" if sums.days else ""
    found = (
        f"{counted(sums.sealed_messages, 'message was', 'messages were')} sealed in "
        f"{counted(slots, 'slot')}{since}: "
        f"{said or 'none to look for'}; {sums.active_messages:,} are in active slots"
    )
    unknown = seen.figures.snapshot is None
    if unknown:
        found += "; the state store does not answer, so active slots are not compared"
    if not sums.lost:
        hint = OF_THE_STATE_STORE if unknown else ""
        return Judgement("nothing_lost", found, hint, serious=not unknown, numbers=numbers)
    missing = f"{lost_in_words(sums.lost)}. {found}"
    return Judgement("nothing_lost", missing, what_to_do(sums.lost), numbers=numbers)


def store_reachable(seen: Look) -> Judgement:
    """Whether uploads wait for an object store that does not answer, or refuses us."""
    if not seen.store_trouble:
        return Judgement("store_reachable", "no upload is waiting for the store")
    hint = "see what `fuploader doctor` says of the object store"
    return Judgement("store_reachable", seen.store_trouble, hint)


def dead_letters_below_limit(pipeline: Pipeline, seen: Look) -> Judgement:
    """Whether there are at most `max_dead_letters_per_hour`."""
    recent, most = seen.letters.last_hour(seen.figures.at), pipeline.max_dead_letters_per_hour
    waiting = seen.figures.dead_letters_waiting
    found = f"{counted(recent, 'dead letter')} within the last hour; the limit is {most:,}"
    numbers = {"last_hour": recent, "waiting": waiting}
    hint = "`fuploader dead-letters list` shows them" if recent > most else ""
    name = "dead_letters_below_limit"
    return Judgement(name, found, hint, serious=False, numbers=numbers)


def failing(judgements: Sequence[Judgement]) -> list[Judgement]:
    return [one for one in judgements if not one.passed]
