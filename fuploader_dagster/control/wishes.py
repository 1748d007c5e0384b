"""Wishes: whether people want the two parts of a pipeline, intake and shipping, to be paused.

What must always hold:

- For each part the last wish counts, on all nodes of the pipeline, whichever node it was made on. A
  wish is later than every one that its maker could see, whatever his clock says.
- A wish is in `{root}/pause.json`, durably, and in the state store, as a note, which is how it
  reaches the other nodes. Of a full disk and an outage of the store, either still leaves one of the
  two. Whoever looks puts the later wish where an older one is. So the loss of the state store
  forgets no wish.
- A file that cannot be read counts as a pause of each part, until the state store knows a wish for
  it or somebody pauses or resumes it: a pause loses nothing.

A pause of the intake is obeyed by the drain workers (`intake/drain.py`), one of the shipping by
whoever asks for runs (`sensors/`) or ships without Dagster (`standalone.py`). Why it is so:
docs/decisions/0018.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Literal

import msgspec
from msgspec.structs import replace

from fuploader_dagster.contracts.state import HIGHEST_NOTE_TIME, Note, StateStore, warn_once
from fuploader_dagster.disk.durable import make_dirs, write_durably
from fuploader_dagster.disk.layout import Layout
from fuploader_dagster.disk.locks import FileLock, waited_for
from fuploader_dagster.disk.own_files import read_own
from fuploader_dagster.errors import UNREADABLE_JSON, ForeignFile, FuploaderError
from fuploader_dagster.settings.pipeline import Intake
from fuploader_dagster.settings.safe_text import in_a_line

Part = Literal["intake", "shipping"]
PARTS: tuple[Part, ...] = ("intake", "shipping")
LONGEST_REASON = 500


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody wants of one part."""

    at: int = 0
    """Microseconds since 1970; 0: nobody has said anything."""
    paused: bool = False
    by: str = ""
    reason: str = ""

    def __str__(self) -> str:
        """Since when, by whom and why."""
        since = datetime.fromtimestamp(self.at / 1e6, tz=timezone.utc)
        when = f"since {since:%Y-%m-%d %H:%M:%S} UTC by {self.by}" if self.at else ""
        return in_a_line(": ".join(filter(None, (when, self.reason))))


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What is wanted of each part."""

    intake: Wish = Wish()
    shipping: Wish = Wish()

    def of(self, part: Part) -> Wish:
        return self.intake if part == "intake" else self.shipping

    def __str__(self) -> str:
        """What is paused, in a sentence; empty if nothing is."""
        intake, shipping = self.intake, self.shipping
        if intake.paused and shipping.paused and str(intake) == str(shipping):
            return f"intake and shipping are paused {intake}"
        paused = [f"{part} is paused {self.of(part)}" for part in PARTS if self.of(part).paused]
        return "; ".join(paused)


@dataclass(frozen=True)
class Wished:
    """What became of a wish."""

    before: Wishes
    now: Wishes
    trouble: str = ""
    """Why it is not on this disk, or not in the state store, and so not known to other nodes."""


def wish(pipeline: Intake, parts: Sequence[Part], *, paused: bool, by: str, reason: str) -> Wished:
    """Have the parts paused or resumed, on all nodes. May be repeated: the last one counts.

    Raises the disk's error if neither the disk nor the state store takes it.
    """
    layout, settings, trouble = pipeline.layout, pipeline.state.in_a_hurry(), ""
    lock = FileLock(layout.pause_lock)
    with closing(settings.store(pipeline=pipeline.name, node=pipeline.node)) as state:
        unwritable = _failure_of(lock.wait)
        try:
            before = read_here(layout)
            try:
                state.open()
                before = _later(before, _there(state))
            except FuploaderError as error:
                trouble = str(error)
            at = max(int(time.time() * 1e6), *(before.of(part).at + 1 for part in PARTS))
            reason = reason[:LONGEST_REASON]
            new = Wish(at=min(at, HIGHEST_NOTE_TIME), paused=paused, by=by, reason=reason)
            now = replace(before, **dict.fromkeys(parts, new))
            if not trouble:
                try:
                    _put(state, now, parts)
                except FuploaderError as error:
                    trouble = str(error)
            unwritable = unwritable or _failure_of(lambda: _write(layout, now))
        finally:
            lock.release()
    if unwritable and trouble:
        raise unwritable
    if trouble:
        trouble = f"other nodes learn of it when the state store answers again: {trouble}"
    if unwritable:
        trouble = f"only the state store knows it, not the disk: {unwritable}"
    return Wished(before, now, trouble)


def _failure_of(act: Callable[[], None]) -> Exception | None:
    """The error of the disk, a full one for example; None if it worked."""
    try:
        act()
    except (FuploaderError, OSError) as error:
        return error
    return None


def current(pipeline: Intake, *, changing: bool = True) -> Wishes:
    """What is wanted now; what this node knows, if the state store does not answer.

    With `changing` node and store learn from each other.
    """
    settings = pipeline.state.in_a_hurry()
    with closing(settings.store(pipeline=pipeline.name, node=pipeline.node)) as state:
        try:
            state.open()
        except FuploaderError:  # whoever needs the store for its own work says so
            return read_here(pipeline.layout)
        return known(pipeline.layout, state, changing=changing)


def known(layout: Layout, state: StateStore, *, changing: bool = True) -> Wishes:
    """The same, with an open state store."""
    here = read_here(layout)
    try:
        there = _there(state)
        newest = _later(here, there)
        if changing and newest != there:
            _put(state, newest, [part for part in PARTS if newest.of(part) != there.of(part)])
    except FuploaderError as error:
        warn_once(f"pauses that are asked for on other nodes are not seen: {error}")
        return here
    if changing and newest != here:
        try:
            with waited_for(FileLock(layout.pause_lock)):
                newest = _later(read_here(layout), newest)
                _write(layout, newest)
        except (
            FuploaderError,
            OSError,
        ) as error:  # a full disk is no reason to do what nobody wants
            warn_once(f"the state store has to remember alone what is paused: {error}")
    return newest


def read_here(layout: Layout) -> Wishes:
    """What this node knows. Never raises: see above for a file that cannot be read."""
    try:
        return msgspec.json.decode(read_own(layout.pause), type=Wishes)
    except (FileNotFoundError, NotADirectoryError):  # there can be no file
        return Wishes()
    except (OSError, ForeignFile, *UNREADABLE_JSON) as error:
        damaged = Wish(
            paused=True,
            reason=f"{layout.pause} cannot be read ({type(error).__name__}): `fuploader pause` or "
            f"`fuploader resume` says again what is wanted",
        )
        return Wishes(intake=damaged, shipping=damaged)


def _later(here: Wishes, there: Wishes) -> Wishes:
    """The later wish for each part. What cannot be read here has the time 0."""
    pairs = {part: (here.of(part), there.of(part)) for part in PARTS}
    return Wishes(
        **{part: two if two.at and two.at >= one.at else one for part, (one, two) in pairs.items()}
    )


class _Said(msgspec.Struct, frozen=True, kw_only=True):
    """The text of a note."""

    paused: bool
    by: str = ""
    reason: str = ""


def _there(state: StateStore) -> Wishes:
    """What the state store knows, without nonsense."""
    found = {}
    for part, note in state.notes().items():
        if part not in PARTS:
            continue  # of a later version
        try:
            said = msgspec.json.decode(note.text, type=_Said)
        except UNREADABLE_JSON:
            warn_once(f"the note {part} in the state store is not one of ours; it is ignored")
            continue
        found[part] = Wish(at=note.at, paused=said.paused, by=said.by, reason=said.reason)
    return Wishes(**found)


def _put(state: StateStore, wishes: Wishes, parts: Sequence[Part]) -> None:
    for part in parts:
        one = wishes.of(part)
        if one.at:
            said = _Said(paused=one.paused, by=one.by, reason=one.reason)
            state.put_note(part, Note(one.at, msgspec.json.encode(said).decode()))


def _write(layout: Layout, wishes: Wishes) -> None:
    make_dirs(layout.root)
    write_durably(layout.pause, msgspec.json.encode(wishes))
