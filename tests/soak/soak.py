"""One soak: start everything, kill and pause while messages flow, let it come to rest, count."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fuploader_dagster.intake.worker_status import read_statuses
from tests.soak.flow import Flow
from tests.soak.installation import Installation
from tests.soak.pauses import Pauses
from tests.soak.plan import LIMITED, PLAIN, Kill, Victim, kills, pauses
from tests.soak.producer import Producer
from tests.soak.verdict import Verdict, dead_letters_below, judge, members_in

START_SECONDS = 120.0
REST_SECONDS = 600.0
"""The recovery schedule looks once a minute, and a run whose process died is noticed within two."""
RETURN_SECONDS = 180.0
PROCESS_SECONDS = 15.0
"""How long a kill waits for a worker or run that it can kill; then it is let off."""
PROCESSES: dict[Victim, tuple[str, ...]] = {
    "worker": ("fuploader_dagster.intake.worker",),
    "run": ("multiprocessing.spawn", "spawn_main"),
    "child": ("fuploader_dagster.processing.child",),
}
SETTINGS: dict[str, Any] = {
    "seal_messages": 2_000,
    "seal_age_seconds": 8,
    "commit_messages": 100,
    "prefetch_count": 400,
    "max_tasks_per_child": 20_000,
    "retry_delay_seconds": 1,
    "recovery_base_seconds": 20,
    "recovery_cap_seconds": 40,
}


@dataclass
class Progress:
    """How far a soak is: for whoever stops it."""

    doing: str = "starting"
    published: int = 0
    kills: Counter[str] = field(default_factory=Counter)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def soak(
    seed: int,
    seconds: float,
    *,
    rate: int,
    pause_seconds: float,
    folder: Path,
    progress: Progress,
    source: str = "rabbitmq",
) -> dict[str, Any]:
    """Returns what the last line says."""
    pipelines = (PLAIN, LIMITED)
    with Installation(
        folder, pipelines=pipelines, process=True, source=source, **SETTINGS
    ) as parts:
        producer = Producer(parts.queues, seed, rate)
        flow = Flow(parts.places(), lambda: producer.next)
        pausing = Pauses(
            parts.folder / "project",
            parts.code_server.environment,
            flow,
            pauses(seed, pause_seconds),
            say,
        )
        flow.start()
        producer.start()
        try:
            _wait(
                lambda: flow.newest() >= 0, START_SECONDS, parts, "the first message to be stored"
            )
            say("it flows; the kills begin")
            progress.doing = "killing"
            pausing.start()
            _kill(parts, flow, kills(seed, pause_seconds), seconds, progress.kills)
            pausing.stop()
        finally:
            pausing.let_go()
            producer.stop()
            flow.stop()
            progress.published = producer.next
        if producer.problem is not None:
            raise producer.problem
        done = progress.kills
        say(
            f"{done.total()} kills, {pausing.done.total()} pauses, {producer.next:,} messages; "
            "no more of any"
        )
        progress.doing = "coming to rest"
        began = time.monotonic()
        unfinished = _rest(parts, flow)
        rested = time.monotonic() - began
        say(f"{'not ' if unfinished else ''}at rest after {rested:.0f} s; counting")
        verdict = judge(
            seed,
            producer.confirmed,
            members_in(parts.s3.client(), parts.bucket),
            (
                letter
                for layout in parts.layouts.values()
                for letter in dead_letters_below(layout.dead_letters)
            ),
        )
        return {
            **_counts(verdict),
            "kills": done.total(),
            "seed": seed,
            "source": source,
            "seconds": round(seconds),
            "kills_by_victim": dict(sorted(done.items())),
            "pauses": dict(sorted(pausing.done.items())),
            "seconds_until_it_flowed": flow.seconds(),
            "seconds_until_rest": round(rested),
            "unfinished": unfinished,
            "unasked_restarts": {
                part.name: part.surprises for part in parts.kept.values() if part.surprises
            },
            "set_aside": sorted(
                path.name
                for layout in parts.layouts.values()
                for path in layout.set_aside.glob("*")
            ),
            "reused_keys": _reused_keys(parts),
        }


def _counts(verdict: Verdict) -> dict[str, Any]:
    counts = asdict(verdict)
    for what, some in counts.pop("examples").items():
        for one in some:
            say(f"{what}: {one}")
    return counts


def _kill(
    parts: Installation, flow: Flow, plan: Iterator[Kill], seconds: float, done: Counter[str]
) -> None:
    """Kill by plan for so long; `done` counts who was killed how often."""
    until = time.monotonic() + seconds
    for kill in plan:
        time.sleep(max(0.0, min(kill.after_seconds, until - time.monotonic())))
        if time.monotonic() >= until:
            return
        if kill.victim in PROCESSES:
            hit = _kill_process(parts, flow, kill)
        else:
            hit = _kill_part(parts, flow, kill)
        if hit:
            done[f"{kill.victim}, emptied" if kill.emptied else kill.victim] += 1
        say(f"{kill}{'' if hit else ': none was there'}")
    raise AssertionError("the plan is endless")


def _kill_part(parts: Installation, flow: Flow, kill: Kill) -> bool:
    """A part that the process manager starts again."""
    alone = kill.victim == "code_server_alone"
    name = "code_server" if alone else kill.victim
    part, thing = parts.kept[name], getattr(parts, name)
    _wait(lambda: part.up, RETURN_SECONDS, parts, f"{part.name} to be back")

    def bring_down() -> None:
        if kill.polite:
            thing.stop()
        elif alone:
            thing.kill_alone()
        else:
            thing.kill()
        if kill.emptied:
            parts.redis.empty()

    flow.killed(kill.victim, lambda: part.up, uploads=kill.victim == "s3")
    part.bring_down(bring_down, kill.down_seconds)
    return True


def _kill_process(parts: Installation, flow: Flow, kill: Kill) -> bool:
    """A process that the product, or Dagster, has to replace."""
    words = PROCESSES[kill.victim]
    until = time.monotonic() + PROCESS_SECONDS
    while not (pids := parts.processes(*words)):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    pid = pids[int(kill.dice * len(pids))]
    places = [
        (layout, one.worker)
        for layout in parts.layouts.values()
        for one in read_statuses(layout)
        if one.pid == pid
    ]
    flow.killed(kill.victim, lambda: True, places=places, uploads=kill.victim in ("run", "child"))
    try:
        os.kill(pid, signal.SIGTERM if kill.polite else signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _unfinished(parts: Installation) -> list[str]:
    """What is not at its end yet: messages in the queue, slots on the disk."""
    if not parts.up():
        return ["a part is not up"]
    folders = ("active/slot-*/dir-*", "sealed/slot-*/dir-*", "processed/slot-*/dir-*", "archives/*")
    found = [
        str(path)
        for layout in parts.layouts.values()
        for folder in folders
        for path in layout.root.glob(folder)
    ]
    if found:
        return found
    # Only now, because it costs a second of a processor: also what workers have in their hands.
    waiting = parts.queues.waiting(list(parts.layouts))
    return [f"{count} messages in queue {name}" for name, count in waiting.items() if count]


def _rest(parts: Installation, flow: Flow) -> list[str]:
    """Wait until nothing is unfinished; returns what still is when nothing was stored for
    `REST_SECONDS`."""
    stored, until = -1, 0.0
    while left := _unfinished(parts):
        if (now := flow.receipts_bytes()) != stored:
            stored, until = now, time.monotonic() + REST_SECONDS
        if time.monotonic() > until:
            break
        time.sleep(0.5)
    return left


def _wait(met: Callable[[], bool], seconds: float, parts: Installation, what: str) -> None:
    until = time.monotonic() + seconds
    while not met():
        if time.monotonic() > until:
            left = "; ".join(_unfinished(parts)[:10])
            workers = "; ".join(
                f"{name} {s.worker}: {s.doing} {s.problem}"
                for name, layout in parts.layouts.items()
                for s in read_statuses(layout)
            )
            raise AssertionError(
                f"waited {seconds:.0f} s for {what}; left: {left}; workers: {workers}; "
                f"logs and data are in {parts.folder}"
            )
        time.sleep(0.5)


def _reused_keys(parts: Installation) -> list[str]:
    """Partition keys and object keys that stand in two receipts."""
    receipts = [
        json.loads(line)
        for layout in parts.layouts.values()
        for path in layout.receipts.glob("*.jsonl")
        for line in path.read_bytes().splitlines()
        if line.endswith(b"}")
    ]
    keys = Counter(key for one in receipts for key in {one["partition"], one["key"]})
    return sorted(key for key, times in keys.items() if times > 1)


def broken_promises(result: dict[str, Any]) -> list[str]:
    """Which of the counts must be zero and are not."""
    zero = (
        *("unfinished", "lost", "second_copies", "corrupt", "reused_keys"),
        *("wrong_dead_letters", "dead_letter_copies"),
        *("lost_results", "second_results", "wrong_results"),
    )
    return [what for what in zero if result[what]]
