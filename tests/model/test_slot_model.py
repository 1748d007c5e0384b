"""A slot's life against a plain dict: whatever happens in whatever order, each committed message is
there once, with its bytes, under its own or its numbered name, and what is sealed never changes.

Crashes are made in two ways. From what the writing process leaves on the disk at kill -9: the
committed files as they are, and after them any part of what the next commit would have written.
And after each durable step of a commit, of a seal, and of the recovery from that (the process goes
on here, so what it would clean up is cleaned up; `tests/faults/test_crash_points.py` kills it).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from fuploader_dagster.dead_letters.letters import DeadLetter, DeadLetterBox, read_dead_letters
from fuploader_dagster.disk.crash_points import CrashPoint, observe
from fuploader_dagster.settings.pipeline import Intake
from fuploader_dagster.slots.numbered_names import numbered_name
from fuploader_dagster.slots.sealing import SealedSlot, find_sealed, sealed_partitions
from fuploader_dagster.slots.slot import SlotOwner
from tests.settings import intake

NAMES = st.sampled_from(
    ["a.json", "a~2.json", "a", "ü" * 127, "x" * 255, "x" * 251 + ".y~2", ".json", "a b"]
)
CONTENTS = st.sampled_from([b"", b"1", b"2", b"3", b"x" * 511, b"x" * 512, b"x" * 5000])
FORMATS = st.sampled_from(["segment", "files"])
HEADERS = st.sampled_from(["", '{"cmd":"1"}', '{"cmd":"ü","n":"2"}', '{"x":"' + "x" * 600 + '"}'])
MESSAGES = st.lists(st.tuples(NAMES, CONTENTS, HEADERS), min_size=1, max_size=6)
Files = dict[str, bytes]
Messages = list[tuple[str, bytes, str]]
"""Names, contents, and the headers, which count while the setting is on."""


def files_of(sealed: SealedSlot) -> Files:
    """What a sealed slot holds, read without the code under test but for the index."""
    entries = sealed.entries()
    assert len({entry.name for entry in entries}) == len(entries)
    if sealed.seal.slot_format == "files":
        assert {path.name for path in sealed.files.iterdir()} == {entry.name for entry in entries}
        return {entry.name: (sealed.files / entry.name).read_bytes() for entry in entries}
    data = sealed.segment.read_bytes()
    starts = {entry.name: entry.offset + entry.header_bytes for entry in entries}
    return {e.name: data[starts[e.name] : starts[e.name] + e.size_bytes] for e in entries}


def everything_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def letter(body: bytes) -> DeadLetter:
    return DeadLetter(
        time="", reason="", redelivered=False, message_id=None, attributes={}, body=body
    )


_Message = tuple[bytes, str]
"""Content and headers."""


def stored_name(there: Mapping[str, _Message], name: str, message: _Message) -> str | None:
    """Where a message goes by the rules, said plainly; None if it is there already."""
    if name not in there:
        return name
    if there[name] == message:
        return None
    number = 2
    while (candidate := numbered_name(name, number)) in there:
        if there[candidate] == message:
            return None
        number += 1
    return candidate


class Killed(BaseException):
    """Stands for kill -9: nothing of ours may catch it and go on."""


@contextmanager
def killed_after_step(number: int) -> Iterator[None]:
    """The block ends after this step, if it has that many."""
    left = number

    def count(_: CrashPoint) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed

    observe(count)
    try:
        with suppress(Killed):
            yield
    finally:
        observe(None)


class SlotLife(RuleBasedStateMachine):
    """`committed` and `added` are the active directory, `sealed` all that was sealed. `headers` are
    those of the names in the active directory, and may have more names."""

    @initialize(slot_format=FORMATS)
    def begin(self, slot_format: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slot-model-"))
        self.settings: Intake = intake(self.folder, slot_format=slot_format)
        self.committed: Files = {}
        self.added: Files = {}
        self.headers: dict[str, str] = {}
        self.sealed: dict[str, tuple[Files, dict[str, bytes]]] = {}
        self.numbers: list[int] = []
        self.moment = 1_795_262_400.0
        self.letters: list[bytes] = []
        self.slot = self.opened()

    def opened(self) -> SlotOwner:
        self.moment += 1
        return SlotOwner(self.settings, 0, clock=lambda: self.moment).__enter__()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.slot.__exit__()
            shutil.rmtree(self.folder)

    @rule(messages=MESSAGES)
    def add(self, messages: Messages) -> None:
        for name, content, drawn in messages:
            headers = drawn if self.settings.headers else ""
            files = {**self.committed, **self.added}
            there = {one: (files[one], self.headers[one]) for one in files}
            stored = stored_name(there, name, (content, headers))
            assert self.slot.add(name, content, headers) is (stored is not None)
            if stored is not None:
                self.added[stored] = content
                self.headers[stored] = headers

    @rule(messages=MESSAGES)
    def commit(self, messages: Messages) -> None:
        self.add(messages)
        self.slot.commit()
        self.committed.update(self.added)
        self.added = {}

    @rule()
    def seal(self) -> None:
        self.moment += 1
        sealed = self.slot.seal("request")
        self.committed.update(self.added)
        self.added = {}
        assert (sealed is None) is (not self.committed)
        if sealed is not None:
            self.take(sealed)

    def take(self, sealed: SealedSlot) -> None:
        """The active directory has become this one."""
        assert files_of(sealed) == self.committed
        assert all(entry.headers == self.headers[entry.name] for entry in sealed.entries())
        assert sealed.seal.messages == len(self.committed)
        self.sealed[sealed.seal.partition] = (self.committed, everything_in(sealed.directory))
        self.numbers.append(sealed.seal.number)
        self.committed = {}

    @rule()
    def leave_and_come_back(self) -> None:
        self.slot.__exit__()
        self.added = {}
        self.slot = self.opened()

    @rule(other=FORMATS)
    def come_back_with_another_format(self, other: Literal["segment", "files"]) -> None:
        self.slot.__exit__()
        self.added = {}
        self.settings = self.settings.model_copy(update={"slot_format": other})
        self.slot = self.opened()

    @rule()
    def come_back_with_headers_switched(self) -> None:
        """Switched on, what is in a directory without room for headers is sealed as it is."""
        self.slot.__exit__()
        self.added = {}
        switched_on = not self.settings.headers
        now = ("cmd",) if switched_on else ()
        self.settings = self.settings.model_copy(update={"headers": now})
        self.slot = self.opened()
        for sealed in self.slot.found_sealed:
            assert switched_on
            self.take(sealed)

    @rule(messages=MESSAGES, data=st.data())
    def crash_in_a_commit(self, messages: Messages, data: st.DataObject) -> None:
        """Any part of the data may be on the disk; of the index only once the data is whole."""
        self.add(messages)
        if not self.added:
            return
        directory = self.settings.layout.active(0, self.slot.count.number)
        before = everything_in(directory)
        self.slot.commit()
        after = everything_in(directory)
        self.slot.__exit__()
        grown = {name: after[name] for name in after if after[name] != before.get(name)}
        index = grown.pop("index")
        written = data.draw(st.sampled_from(["some data", "some index", "all"]))
        if written == "some data":
            for name, content in grown.items():
                self.cut(directory / name, before.get(name), content, data)
            (directory / "index").write_bytes(before["index"])
        elif written == "some index":
            self.cut(directory / "index", before["index"], index, data)
        self.slot = self.opened()
        kept = list(self.added)[: self.slot.count.messages - len(self.committed)]
        if written != "some index":
            assert len(kept) == (0 if written == "some data" else len(self.added))
        self.committed.update({name: self.added[name] for name in kept})
        self.added = {}

    @staticmethod
    def cut(path: Path, before: bytes | None, after: bytes, data: st.DataObject) -> None:
        """Leave a beginning of what was appended, or garbage, or, of a new file, nothing."""
        start = before or b""
        end = data.draw(st.integers(len(start), len(after) - 1 if len(after) > len(start) else 0))
        how = data.draw(st.sampled_from(["cut", "zeros", "absent"]))
        if how == "absent" and before is None:
            path.unlink()
        else:
            path.write_bytes(after[:end] + bytes(len(after) - end if how == "zeros" else 0))

    @rule(messages=MESSAGES, renamed=st.booleans())
    def crash_in_a_seal(self, messages: Messages, renamed: bool) -> None:
        self.add(messages)
        self.moment += 1
        sealed = self.slot.seal("count")
        assert sealed is not None
        self.committed.update(self.added)
        self.added = {}
        self.slot.__exit__()
        if not renamed:
            sealed.directory.rename(self.settings.layout.active(0, sealed.seal.number))
        self.slot = self.opened()
        assert self.slot.found_sealed == ([] if renamed else [sealed])
        self.take(sealed)

    @rule(
        messages=MESSAGES,
        seals=st.booleans(),
        step=st.integers(1, 12),
        again=st.lists(st.integers(1, 8), max_size=2),
    )
    def die_after_a_step_and_in_recovery(
        self, messages: Messages, seals: bool, step: int, again: list[int]
    ) -> None:
        """Then the queue delivers the messages again: they are stored once."""
        before = dict(self.committed)
        self.moment += 1
        with killed_after_step(step):
            self.add(messages)
            if seals:
                self.slot.seal("count")
            else:
                self.slot.commit()
        everything = {**before, **self.added}
        self.added = {}
        self.slot.__exit__()
        for number in again:
            with killed_after_step(number):
                self.opened().__exit__()
        self.slot = self.opened()
        new = set(sealed_partitions(self.settings.layout)) - set(self.sealed)
        if new:
            assert seals
            sealed = find_sealed(self.settings.layout, new.pop())
            assert sealed is not None
            assert not new
            self.committed = everything
            self.take(sealed)
        else:
            held = self.slot.count.messages
            assert held in (len(before), len(everything))
            self.committed = dict(list(everything.items())[:held])
            self.commit(messages)

    @rule(bodies=st.lists(st.binary(max_size=9), min_size=1, max_size=4), data=st.data())
    def keep_dead_letters(self, bodies: list[bytes], data: st.DataObject) -> None:
        """A crash in between leaves any beginning of the lines; whole ones count."""
        box = DeadLetterBox(self.settings.layout, 0, clock=lambda: 1_795_262_400.0)
        before = box.path().read_bytes() if box.path().exists() else b""
        box.keep([letter(body) for body in bodies])
        after = box.path().read_bytes()
        end = data.draw(st.integers(len(before), len(after)))
        box.path().write_bytes(after[:end])
        whole = after[len(before) : end].lstrip(b"\n").split(b"\n")
        lines = after[len(before) :].lstrip(b"\n").split(b"\n")
        kept = [
            body for body, line, left in zip(bodies, lines, whole, strict=False) if line == left
        ]
        self.letters += kept

    @invariant()
    def dead_letters_are_kept(self) -> None:
        if hasattr(self, "slot"):
            found = [one.body for one in read_dead_letters(self.settings.layout)]
            assert found == self.letters

    @rule()
    def lose_the_counter(self) -> None:
        """The number is found from what is on the disk; only shipped slots' numbers need it."""
        (self.settings.layout.active_slot(0) / "next-number").unlink(missing_ok=True)

    @invariant()
    def the_slot_counts_what_it_holds(self) -> None:
        if hasattr(self, "slot"):
            held: Iterable[bytes] = [*self.committed.values(), *self.added.values()]
            count = self.slot.count
            assert (count.messages, count.size_bytes) == (len(list(held)), sum(map(len, held)))

    @invariant()
    def what_is_sealed_never_changes(self) -> None:
        if hasattr(self, "slot"):
            assert sealed_partitions(self.settings.layout) == sorted(self.sealed)
            assert len(set(self.numbers)) == len(self.numbers)
            for partition, (files, content) in self.sealed.items():
                found = find_sealed(self.settings.layout, partition)
                assert found is not None
                assert files_of(found) == files
                assert everything_in(found.directory) == content


SlotLife.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestSlotLife = SlotLife.TestCase
