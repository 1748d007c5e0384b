"""Whatever a user's function does, each item ends with its results or with a reason of its own."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuploader_dagster import Functions, Item, Processor
from fuploader_dagster.errors import BadItem, ProcessorUnavailable
from fuploader_dagster.testing.processor_contract import opened
from tests.hostile_functions_for_tests import DEEDS

MODULE = "tests.hostile_functions_for_tests"
MARK = "FUPLOADER_TEST_MARK"
HAS_PROC = Path("/proc/self/environ").exists()
MIB = 1 << 20


@pytest.fixture(autouse=True)
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Processes that a test starts are known by it; none is left when the test is over."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    yield mark
    until(lambda: not marked(mark), f"processes are left: {marked(mark)}")


def marked(mark: str) -> list[int]:
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            state = (environ.parent / "stat").read_text().rpartition(")")[2].split()[0]
            if mark.encode() in environ.read_bytes() and state != "Z":
                found.append(int(environ.parent.name))
        except OSError:
            continue  # it has ended, or is another user's
    return found


def until(condition: Callable[[], bool], otherwise: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)


def functions(**values: object) -> Functions:
    defaults: dict[str, object] = {
        "workers": 2,
        "timeout_seconds": 5,
        "memory_bytes": 512 * MIB,
        "max_result_bytes": 3 * MIB,
    }
    return Functions(module=MODULE, **{**defaults, **values})  # type: ignore[arg-type]


def in_words(outcome: object) -> object:
    """The results' contents, or the reason."""
    if isinstance(outcome, BaseException):
        return f"{type(outcome).__name__}: {outcome}"
    assert isinstance(outcome, (list, tuple))
    return [result.content for result in outcome]


async def outcome_of(processor: Processor, cmd: str, content: bytes = b"x") -> object:
    try:
        (outcome,) = await processor.process([Item("item", content, {"cmd": cmd}, "key")])
    except ProcessorUnavailable as error:
        return in_words(error)
    return in_words(outcome)


def run(settings: Functions, *cmds: str) -> list[object]:
    """What becomes of items with these commands, all at once."""

    async def all_of_them(processor: Processor) -> list[object]:
        contents = [f"{cmd} {number}".encode() for number, cmd in enumerate(cmds)]
        calls = (
            outcome_of(processor, cmd, content) for cmd, content in zip(cmds, contents, strict=True)
        )
        return list(await asyncio.gather(*calls))

    return opened(settings, all_of_them)


REASONS = {
    "raise": r"do raised ValueError: no such picture \(hostile_functions_for_tests.py, line \d+\)",
    "raise-nasty": "raised _Nasty",
    "raise-large": "raised ValueError: xxx",
    "raise-surrogate": r"raised ValueError: \\ud800",
    "sys.exit": "raised SystemExit: 3",
    "interrupt": "raised KeyboardInterrupt",
    "generator-exit": "raised GeneratorExit",
    "cancelled": "raised CancelledError",
    "none": "it returned None (return a Result, bytes, text",
    "path": "it returned a path, not content (return path.read_bytes()",
    "file": "it returned an open file (_io.BytesIO)",
    "object": "it returned a value of type object",
    "set": "it returned a value of type set",
    "not-json": "cannot be written as JSON: a value of type object",
    "nan": "cannot be written as JSON",
    "surrogate": "cannot be written as UTF-8",
    "gigabyte": "(MemoryError|more than 3,145,728 bytes together)",
    "many-small": r"more than 3,145,728 bytes together \(raise max_result_bytes",
    "without-end": "more than 100,000 results",
    "yields-and-raises": "raised ValueError: after one",
    "up": "the file name '..' cannot be used: it means a directory",
    "separator": "the file name 'a/b' cannot be used: it contains a path separator",
    "nul": "it contains a control character",
    "long-name": "it has 256 bytes, the limit is 255",
    "bad-type": "the content_type of its Result is not one",
    "content-none": "the content of its Result is a NoneType",
}
ENDS = {
    "exit": "exit code 7",
    "segfault": "signal 11",
    "abort": "signal 6",
    "killed": "SIGKILL",
    "hang": r"longer than timeout_seconds \(5 s\)",
    "hang-in-c": r"longer than timeout_seconds \(5 s\)",
    "eat": "raised MemoryError",
    "scribble": "it wrote into the connection",
    "close-all": "exit code 1",
}
HARMLESS = {
    "stdin": b"end",
    "print": b"done",
    "fork-and-return": b"original",
    "fork-and-stay": b"done",
    "threads": b"done",
    "term": b"done",
}


def matches(reason: object, wanted: str) -> bool:
    plain = wanted if "\\" in wanted or wanted.startswith("(") else re.escape(wanted)
    return isinstance(reason, str) and re.search(plain, reason) is not None


def test_a_function_that_raises_or_returns_nonsense_costs_its_item_and_no_process() -> None:
    for settings, prefix in ((functions(), "do"), (functions(memory_bytes=None), "do-async")):
        deeds = [deed for deed in REASONS if prefix == "do" or deed != "raise"]
        cmds = [cmd for deed in deeds for cmd in (f"{prefix}/{deed}", "echo")]
        outcomes = run(settings, *cmds)
        wrong = {
            deed: reason
            for deed, reason in zip(deeds, outcomes[::2], strict=True)
            if not matches(reason, REASONS[deed]) or not str(reason).startswith("BadItem: ")
        }
        assert wrong == {}
        assert outcomes[1::2] == [[f"echo {n}".encode()] for n in range(1, len(cmds), 2)]
        assert max(len(str(outcome)) for outcome in outcomes) < 5_000


@pytest.mark.parametrize("deed", ENDS)
def test_an_item_that_ends_its_process_twice_is_bad_and_the_others_are_done(deed: str) -> None:
    outcomes = run(functions(), "echo", f"do/{deed}", *["echo"] * 10)
    reason = outcomes.pop(1)
    assert matches(reason, ENDS[deed])
    assert str(reason).startswith("BadItem: processing it ended its process, and again one in")
    assert len(outcomes) == 11
    assert all(isinstance(outcome, list) for outcome in outcomes)


@pytest.mark.parametrize("deed", ["exit", "segfault", "hang-in-c", "eat"])
def test_an_async_function_that_ends_the_process_of_all_is_found_among_the_others(
    deed: str,
) -> None:
    outcomes = run(functions(), *["echo-async"] * 5, f"do-async/{deed}", *["sleep/0.1"] * 5)
    reason = outcomes.pop(5)
    assert matches(reason, ENDS[deed])
    assert [type(outcome) for outcome in outcomes] == [list] * 10


def test_an_async_function_that_waits_too_long_is_bad_alone_and_one_that_will_not_end_too() -> None:
    outcomes = run(functions(timeout_seconds=3), "sleep/3600", "stubborn", *["sleep/0.5"] * 5)
    late = r"took longer than timeout_seconds \(3 s\)"
    assert matches(outcomes[0], late)
    assert matches(outcomes[1], f"({late}|exit code 5)")
    assert [type(outcome) for outcome in outcomes[2:]] == [list] * 5


@pytest.mark.parametrize("deed", HARMLESS)
def test_what_a_function_does_beside_its_work_reaches_nobody(deed: str) -> None:
    cmds = ["echo", f"do/{deed}", f"do-async/{deed}", "echo", "echo-async"]
    if deed == "fork-and-return":  # a copy of an event loop cannot leave it in order
        cmds[2] = "echo"
    outcomes = run(functions(timeout_seconds=30), *cmds)
    assert outcomes[1] == [HARMLESS[deed]]
    assert all(isinstance(outcome, list) for outcome in outcomes)


def test_every_deed_is_tried() -> None:
    elsewhere = {"unavailable", "alarm-later", "close-stdout"}
    assert set(DEEDS) == {*REASONS, *ENDS, *HARMLESS, *elsewhere}


def test_a_function_may_say_that_nothing_works() -> None:
    (outcome,) = run(functions(), "do/unavailable")
    assert outcome == "ProcessorUnavailable: the model server is down"


def test_an_item_that_a_leftover_of_another_one_hits_is_not_blamed() -> None:
    """A timer that one function left ends the process while it works for others."""
    cmds = ["do/alarm-later", *["work"] * 200]
    outcomes = run(functions(workers=1), *cmds)
    assert [type(outcome) for outcome in outcomes] == [list] * 201


def test_a_closed_stdout_harms_nobody() -> None:
    assert run(functions(workers=1), "do/close-stdout", "do/print", "echo")[2] == [b"echo 2"]


@pytest.mark.parametrize("turns", [0, 1, 2, 5, 20, 100])
def test_a_processor_that_is_closed_at_once_leaves_no_process(turns: int) -> None:
    async def use(_: Processor) -> list[object]:
        for _turn in range(turns):
            await asyncio.sleep(0)
        return []

    assert opened(functions(workers=3), use) == []


@pytest.mark.skipif(not HAS_PROC, reason="finds processes in /proc")
@pytest.mark.parametrize("cmd", ["work", "echo-async"])
def test_children_killed_at_random_cost_no_item(mark: str, cmd: str) -> None:
    random_ = random.Random(19)
    items = 600
    done: Counter[bytes] = Counter()
    kills = 0

    async def use(processor: Processor) -> list[object]:
        nonlocal kills
        numbers = iter(range(items))
        wanted = random_.randrange(5, 60)

        async def worker() -> list[object]:
            nonlocal kills, wanted
            wrong: list[object] = []
            for number in numbers:
                body = b"%d" % number
                outcome = await outcome_of(processor, cmd, body)
                if outcome != [body]:
                    wrong.append(outcome)
                done[body] += 1
                if done.total() >= wanted and (pids := marked(mark)):
                    wanted = done.total() + random_.randrange(5, 60)
                    os.kill(random_.choice(pids), signal.SIGKILL)
                    kills += 1
            return wrong

        return [
            one for wrong in await asyncio.gather(*(worker() for _ in range(16))) for one in wrong
        ]

    assert opened(functions(timeout_seconds=60), use) == []
    assert done == Counter(b"%d" % number for number in range(items))
    assert kills >= 8


@pytest.mark.skipif(not HAS_PROC, reason="finds processes in /proc")
def test_children_end_with_a_run_that_is_killed(mark: str) -> None:
    script = f"""
        import asyncio
        from fuploader_dagster import Functions, Item

        async def main():
            processor = Functions(module={MODULE!r}, workers=2).processor()
            await processor.open()
            cmds = ["do/hang", "do/hang-in-c", "do-async/hang"]
            items = [Item("x", b"", {{"cmd": cmd}}) for cmd in cmds]
            print("open", flush=True)
            await asyncio.gather(*(processor.process([item]) for item in items))

        asyncio.run(main())
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        until(lambda: len(marked(mark)) >= 4, "the children did not start")
        process.kill()
    until(lambda: not marked(mark), "the children outlived the run")


def test_a_module_that_breaks_while_it_is_in_use_stops_the_step_and_makes_nobody_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"app_{uuid.uuid4().hex}"
    module = tmp_path / f"{name}.py"
    module.write_text(
        "import os\n"
        "from fuploader_dagster import processor\n"
        "@processor(route='exit')\n"
        "def leave(item): os._exit(1)\n"
        "@processor\n"
        "def echo(item): return item.content\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = Functions(module=name, workers=1)
    before = settings.version()

    async def use(processor: Processor) -> list[object]:
        first = await outcome_of(processor, "echo")
        module.write_text(module.read_text() + "# changed\n")
        return [first, await outcome_of(processor, "exit"), await outcome_of(processor, "echo")]

    first, second, third = opened(settings, use)
    assert first == [b"x"]
    assert str(second).startswith("ProcessorUnavailable: the module")
    assert "was changed while items were processed" in str(second)
    assert third == second
    assert settings.version() != before


def test_an_unforeseen_end_of_a_call_is_no_bad_item() -> None:
    """Closing gives up what is in work; nobody is blamed."""

    async def use(processor: Processor) -> list[object]:
        call = asyncio.create_task(outcome_of(processor, "do/hang"))
        await outcome_of(processor, "echo")
        await processor.close()
        return [await call]

    assert opened(functions(), use) == ["ProcessorUnavailable: the processor was closed"]
    assert not issubclass(ProcessorUnavailable, BadItem)
