"""A power cut keeps what was synced, and what was not it may take: so the order of system calls is
what protects, and strace shows it, from outside, for one process that goes the whole way.

`Disk` notes what a power cut could still take: bytes that were written and not synced, and names
that were given and whose directory was not synced.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.crashes import ROOT
from tests.drains import files, publish, publish_bodies
from tests.faults.test_crash_points import archived, settings_in
from tests.faults.test_dividing_crashes import SPLIT
from tests.faults.test_dividing_crashes import published as of_tenants
from tests.servers.process import binary
from tests.servers.queue_fixtures import new_queue
from tests.servers.rabbitmq import RabbitMQServer
from tests.servers.redis import RedisServer

CALLS = (
    *("write", "pwrite64", "writev", "pwritev", "ftruncate", "sendfile", "copy_file_range"),
    *("fsync", "fdatasync", "syncfs", "mkdir", "openat", "rename", "link", "linkat", "unlink"),
    *("unlinkat", "rmdir", "sendto"),
)
PROCESSED = ("processed", "slot-0")
_CALL = re.compile(r"(?P<call>\w+)\((?P<given>.*)\) += (?P<result>-?\d+)")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_OPEN_FILE = re.compile(r"^\d+<((?:\\x[0-9a-f]{2})*)>")
_PLACE = re.compile(r'\w+<((?:\\x[0-9a-f]{2})*)>, "((?:\\x[0-9a-f]{2})*)"')
"""An open folder and a name in it."""
_SETTLED = re.compile(rb"\x00\x3c\x00[\x50\x5a]........", re.DOTALL)
"""AMQP 0-9-1: basic.ack or basic.reject, with a delivery tag."""


class Call(NamedTuple):
    """One system call that succeeded."""

    name: str
    paths: list[Path]
    content: bytes
    creates: bool


class Disk:
    """What a power cut could take at this moment, and what was done too early."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.bytes: set[Path] = set()
        self.names: set[Path] = set()
        self.known: set[Path] = set()
        self.early: list[str] = []
        self.seen: Counter[str] = Counter()

    def take(self, done: Call) -> None:
        call = done.name
        if call == "sendto":
            if _SETTLED.search(done.content):
                self._demand("an acknowledgement", "data/docs/active", "data/docs/dead-letters")
            return
        paths = [path for path in done.paths if path.is_relative_to(self._folder)]
        if not paths:
            return
        first, last = paths[0], paths[-1]
        if call in ("syncfs", "fsync", "fdatasync"):
            self._sync(call, first)
        elif call == "mkdir" or (call == "openat" and done.creates):
            if first not in self.known:
                self._name(first)
        elif call in ("rename", "link", "linkat"):
            self._move(first, last, linked=call != "rename")
        elif call in ("unlink", "unlinkat", "rmdir"):
            self._remove(first)
        elif call != "openat":
            commits = first.name == "segment.tar" or done.content.startswith(b"FUPC")
            if first.parts[-4:-2] == PROCESSED and commits:
                self._demand(f"results in {first.name}", *self._before(first))
            self.bytes.add(first)

    def _sync(self, call: str, first: Path) -> None:
        if call == "syncfs":
            # It syncs the rest as well, but whether that comes in time is chance.
            for here in (self.bytes, self.names):
                here -= {path for path in here if path.is_relative_to(first.parent)}
            return
        self.bytes.discard(first)
        if call == "fsync":
            self.names -= {name for name in self.names if name.parent == first}

    def _before(self, path: Path) -> list[str]:
        """What has to be synced before a commit of results goes on with this file."""
        here = path.parent.relative_to(self._folder)
        synced = [str(here / "outcomes"), "data/docs/dead-letters"]
        data = [str(here / "segment.tar"), str(here / "files")]
        return synced if path.name == "segment.tar" else [*synced, *data]

    def _name(self, path: Path) -> None:
        self.known.add(path)
        self.names.add(path)

    def _move(self, source: Path, target: Path, *, linked: bool) -> None:
        parts = target.relative_to(self._folder).parts
        if parts[:3] == ("data", "docs", "sealed") and not target.name.startswith(".tmp-"):
            self._demand("a seal", str(source.relative_to(self._folder)))
        if target.parts[-4:-2] == PROCESSED and target.name == "seal.json":
            self._demand("a processed slot", str(target.parent.relative_to(self._folder)))
        if source.parts[-3:-2] == ("active",) and target.name.startswith(".tmp-"):
            self._demand("the removal of a divided directory", "data/docs/sealed")
        if source.parts[-3:-2] == ("sealed",) and target.name.startswith(".tmp-"):
            self._demand("the removal of a slot", "data/docs/receipts", "objects")
        if source.name.startswith(".tmp-") and source in self.bytes and not _for_display(target):
            self.early.append(f"{target} got its name before its bytes were synced")
        for here in (self.bytes, self.names):
            moved = {path for path in here if path.is_relative_to(source)}
            here.update(target / path.relative_to(source) for path in moved)
            if not linked:
                here.difference_update(moved)
        self._name(target)

    def _remove(self, path: Path) -> None:
        if re.fullmatch(r"archives/(?!\.tmp-).*\.tar\.zst", "/".join(path.parts[-2:])):
            self._demand("the removal of an archive", "data/docs/receipts", "objects")
        for here in (self.bytes, self.names, self.known):
            here.discard(path)

    def _demand(self, what: str, *below: str) -> None:
        """Everything below these folders, and their own names, must be beyond a power cut."""
        self.seen[what] += 1
        for folder in (self._folder / each for each in below):
            for path in sorted(self.bytes | self.names):
                at_stake = path.is_relative_to(folder) or folder.is_relative_to(path)
                if at_stake and not (path.name.startswith(".tmp-") or _for_display(path)):
                    kind = "bytes" if path in self.bytes else "name"
                    self.early.append(f"{what} came before the {kind} of {path}")


def _for_display(path: Path) -> bool:
    """What only people read: workers' words, and the counts of dead letters."""
    return path.parent.name == "workers" or path.match("dead-letters/counts-*.json")


def calls(trace: str) -> Iterator[str]:
    """The calls in the order in which they ended; those of several threads put together again."""
    begun: dict[str, str] = {}
    for line in trace.splitlines():
        process, _, rest = line.partition(" ")
        rest = rest.strip()
        if rest.endswith("<unfinished ...>"):
            begun[process] = rest.removesuffix("<unfinished ...>").rstrip()
        elif rest.startswith("<..."):
            yield begun.pop(process, "") + rest.partition("resumed>")[2].lstrip()
        else:
            yield rest


def parsed(trace: str) -> Iterator[Call]:
    for line in calls(trace):
        match = _CALL.match(line)
        if match is None or match["result"].startswith("-"):
            continue
        places = _PLACE.findall(match["given"]) if match["call"].endswith("at") else ()
        strings = [_bytes(each) for each in _STRING.findall(match["given"])]
        opened = _OPEN_FILE.match(match["given"])
        if places:
            paths = [Path(_bytes(each).decode()) / _bytes(name).decode() for each, name in places]
        elif opened is not None:
            paths = [Path(_bytes(opened[1]).decode())]
        else:
            paths = [Path(each.decode()) for each in strings if each.startswith(b"/")]
        content = strings[0] if strings and match["call"] in ("sendto", "write") else b""
        yield Call(match["call"], paths, content, "O_CREAT" in match["given"])


def replayed(done: Iterable[Call], folder: Path) -> Disk:
    disk = Disk(folder)
    for call in done:
        disk.take(call)
    return disk


def _bytes(shown: str) -> bytes:
    """What strace shows with `-xx`."""
    return bytes.fromhex(shown.replace("\\x", ""))


def traced(life: str, folder: Path, **values: Any) -> list[Call]:
    """The system calls of a life."""
    trace = folder / "trace"
    asked = {"life": life, "folder": str(folder), "kill": None, "values": values}
    subprocess.run(
        [
            binary("strace", package="strace"),
            *("-f", "-y", "-xx", "-s", "200000", "-o", str(trace)),
            *("-e", f"trace={','.join(CALLS)}"),
            *(sys.executable, "-m", "tests.crashes"),
        ],
        input=json.dumps(asked) + "\n",
        text=True,
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=240,
    )
    return list(parsed(trace.read_text()))


def test_a_power_cut_at_any_call_takes_nothing_that_was_acknowledged_sealed_or_let_go(
    rabbitmq: RabbitMQServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    servers = {"rabbitmq": rabbitmq.url, "redis": redis_server.url(), "queue": new_queue(rabbitmq)}
    settings = settings_in(tmp_path, servers=servers)
    contents = files(100)
    publish(settings, contents)
    publish_bodies(settings, [b"poison %d" % number for number in range(4)])
    done = traced("whole", tmp_path, servers=servers)
    assert archived(settings) == {name: [content] for name, content in contents.items()}
    disk = replayed(done, tmp_path)
    assert disk.early == []
    archives = len(list((tmp_path / "objects").rglob("*.tar.zst")))
    assert disk.seen["an acknowledgement"] >= len(contents) / settings.commit_messages
    assert disk.seen["a seal"] == disk.seen["the removal of a slot"] == archives > 2
    assert disk.seen["the removal of an archive"] == archives
    assert_that_it_would_notice(
        done,
        tmp_path,
        r"data/docs/active/slot-0/dir-\d+/segment\.tar",
        r"data/docs/active/slot-0/dir-\d+/index",
        r"data/docs/active/slot-0/dir-\d+",
        r"data/docs/active/slot-0",
        r"data/docs/dead-letters/.*\.jsonl",
        r"data/docs/dead-letters",
        r"data/docs/receipts/.*\.jsonl",
        r"data/docs/receipts",
        r"data/docs/active/slot-0/dir-\d+/\.tmp-.*-seal\.json",
        r"objects/docs/.*/\.tmp-.*",
        r"objects/docs/\d+",
        r"objects",
    )


def test_a_power_cut_at_any_call_takes_no_result_that_was_counted(tmp_path: Path) -> None:
    traced("to_process", tmp_path)
    done = traced("processing", tmp_path)
    disk = replayed(done, tmp_path)
    assert disk.early == []
    assert disk.seen["results in index"] > 3
    assert disk.seen["a processed slot"] == 1
    assert_that_it_would_notice(
        done,
        tmp_path,
        r"data/docs/processed/slot-0/dir-\d+/outcomes",
        r"data/docs/processed/slot-0/dir-\d+/segment\.tar",
        r"data/docs/processed/slot-0/dir-\d+/index",
        r"data/docs/dead-letters/.*\.jsonl",
        r"data/docs/receipts/.*\.jsonl",
    )


def test_a_power_cut_at_any_call_takes_no_file_that_was_counted(tmp_path: Path) -> None:
    traced("to_process_into_files", tmp_path)
    done = traced("processing_into_files", tmp_path)
    disk = replayed(done, tmp_path)
    assert disk.early == []
    assert disk.seen["results in index"] > 3
    assert disk.seen["a processed slot"] == 1
    assert_that_it_would_notice(
        done,
        tmp_path,
        r"data/docs/processed/slot-0/dir-\d+/files",
        r"data/docs/processed/slot-0/dir-\d+/index",
        r"data/docs/receipts/.*\.jsonl",
    )


def test_a_power_cut_at_any_call_takes_no_message_of_a_slot_that_is_divided(
    tmp_path: Path,
) -> None:
    publish(settings_in(tmp_path, **SPLIT), of_tenants())
    done = traced("whole", tmp_path, **SPLIT)
    disk = replayed(done, tmp_path)
    assert disk.early == []
    divided = disk.seen["the removal of a divided directory"]
    assert divided > 1
    assert disk.seen["a seal"] > 2 * divided
    assert_that_it_would_notice(
        done, tmp_path, r"data/docs/sealed/slot-0/\.tmp-.*", r"data/docs/sealed/slot-0"
    )


def assert_that_it_would_notice(done: list[Call], folder: Path, *each: str) -> None:
    """Without the syncs of any one of these, something is too early."""
    for left_out in each:
        pattern = re.compile(re.escape(str(folder)) + "/" + left_out)
        rest = [
            call
            for call in done
            if call.name not in ("fsync", "fdatasync", "syncfs")
            or not pattern.fullmatch(str(call.paths[0]))
        ]
        assert len(rest) < len(done)
        assert replayed(rest, folder).early, f"nobody misses a sync of {left_out}"
