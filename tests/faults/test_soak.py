"""Less than a minute of the soak, and that its judge notices what it is there to notice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from tests.servers.dagster_part import processes_in, processes_of
from tests.servers.ports import wait_until
from tests.soak.installation import QUEUES
from tests.soak.plan import (
    LIMITED,
    PLAIN,
    VICTIMS,
    body_of,
    content_of,
    is_deadly,
    is_poison,
    is_unprocessable,
    kills,
    name_of,
    outgoing,
    pause_of,
    queue_of,
    results_of,
)
from tests.soak.verdict import Letter, judge

ROOT = Path(__file__).parents[2]
SEED = 10
MANY = 4_000
SHORT = ["-m", "tests.soak", "--seconds", "40", "--pause", "4"]
GOOD = [number for number in range(MANY) if not is_poison(SEED, number)]
POISON = [number for number in range(MANY) if is_poison(SEED, number)]


def test_the_same_seed_is_the_same_soak_and_everything_gets_its_turn() -> None:
    """Kills and messages are functions of the seed alone."""
    deck = list(islice(kills(SEED, 8), len(VICTIMS)))
    assert deck == list(islice(kills(SEED, 8), len(VICTIMS)))
    assert deck != list(islice(kills(SEED + 1, 8), len(VICTIMS)))
    assert sorted(kill.victim for kill in deck) == sorted(VICTIMS)
    assert body_of(SEED, 5) == body_of(SEED, 5) != body_of(SEED + 1, 5)


def test_a_soak_has_messages_of_every_kind() -> None:
    """What a classic queue gets, and what the quorum queue with its own parser gets."""
    assert {queue_of(number) for number in POISON if not is_deadly(SEED, number)} == set(QUEUES)
    assert any(is_deadly(SEED, number) for number in POISON)
    for queue in QUEUES:
        numbers = [number for number in GOOD if queue_of(number) == queue]
        sizes = [len(body_of(SEED, number)) for number in numbers]
        assert max(sizes) > 1 << 20
        assert any(not content_of(SEED, number) for number in numbers)
        slow = [number for number in numbers if pause_of(SEED, number)]
        assert bool(slow) == (queue == LIMITED)
        plain = [number for number in numbers if len(outgoing(SEED, number).properties) == 3]
        assert 0 < len(plain) < len(numbers)


def test_the_judge_counts_what_is_lost_doubled_changed_or_dead() -> None:
    """Each kind of damage, planted once, is counted once; what was not confirmed is free."""
    lost, doubled, changed, unconfirmed = GOOD[3], GOOD[7], GOOD[11], GOOD[-1]
    members = [("a", name_of(n), content_of(SEED, n)) for n in GOOD if n not in (lost, changed)]
    members += [("a", *one) for n in GOOD if n != lost for one in results_of(SEED, n)]
    members.append(("b", name_of(doubled), content_of(SEED, doubled)))
    members.append(("b", name_of(changed), content_of(SEED, changed)[:-1]))
    bodies = [Letter(body_of(SEED, number)) for number in [*POISON[1:], POISON[-1]]]
    bodies += [Letter(b"", name_of(n)) for n in GOOD if n != lost and is_unprocessable(n)]
    confirmed = [range(unconfirmed), range(unconfirmed + 1, MANY)]
    found = judge(SEED, confirmed, iter(members), iter([*bodies, Letter(b"no poison")]))
    assert found.published == MANY - 1
    assert found.lost == 3  # one is nowhere, one is changed, one is poison and no dead letter
    assert (found.second_copies, found.corrupt) == (1, 1)
    assert found.dead_letters == len(POISON) - 1 + 1
    assert (found.dead_letter_copies, found.wrong_dead_letters) == (1, 1)
    assert found.examples["second_copies"] == [f"{name_of(doubled)} in b"]
    assert (found.second_results, found.wrong_results) == (0, len(results_of(SEED, changed)))
    assert found.lost_results == 0


def test_the_judge_counts_results_that_are_lost_doubled_wrong_or_dead() -> None:
    stored = [number for number in GOOD if queue_of(number) == PLAIN]
    members = [("a", name_of(n), content_of(SEED, n)) for n in stored]
    results = [("a", *one) for n in stored for one in results_of(SEED, n)]
    dead = [name_of(n) for n in stored if is_unprocessable(n)]
    letters = [Letter(body_of(SEED, n)) for n in POISON] + [Letter(b"", name) for name in dead]
    found = judge(SEED, [], iter(members + results), iter(letters))
    assert (found.results, len(dead)) > (1_000, 10)
    assert (found.lost_results, found.second_results, found.wrong_results) == (0, 0, 0)
    assert (found.dead_letter_copies, found.wrong_dead_letters) == (0, 0)
    archive, name, content = results[7]
    spoilt = [*results[1:7], results[8], *results[8:], (archive, name, content[:-1])]
    again = [*letters[:-1], letters[-2], Letter(b"", name_of(stored[0]))]
    found = judge(SEED, [], iter(members + spoilt), iter(again))
    assert found.lost_results == 3  # one left out, one changed, one without its dead letter
    assert (found.second_results, found.wrong_results) == (1, 1)
    assert (found.dead_letter_copies, found.wrong_dead_letters) == (1, 1)


def test_a_soak_that_is_stopped_leaves_no_server_behind_and_says_how_far_it_was(
    tmp_path: Path,
) -> None:
    """In the middle of starting, and by somebody impatient; a broker that is down stays down."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.soak", "--seconds", "60", "--seed", str(SEED)],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as soaking:
        wait_until(
            lambda: list(tmp_path.glob("soak-*/redis/appendonly*")) != [],
            seconds=120,
            what="Redis, which is started second",
            diagnose=lambda: str(list(tmp_path.iterdir())),
        )
        soaking.send_signal(signal.SIGTERM)
        soaking.send_signal(signal.SIGINT)
        said, _ = soaking.communicate(timeout=120)
    assert processes_of(f"{tmp_path}/soak-") == []
    assert processes_in(tmp_path) == []
    assert soaking.returncode in (128 + signal.SIGTERM, 128 + signal.SIGINT), said
    last = json.loads(said.splitlines()[-1])
    assert last["seed"] == SEED
    assert last["stopped_by"] in ("SIGTERM", "SIGINT")
    assert (last["doing"], last["published"], last["kills"]) == ("starting", 0, {})


@pytest.mark.timeout(900)
def test_a_short_soak_loses_doubles_and_changes_nothing(tmp_path: Path) -> None:
    """The soak as `make soak` runs it, with kills that are closer together."""
    done = subprocess.run(
        [sys.executable, *SHORT, "--seed", str(SEED)],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-6000:]
    lines = done.stdout.splitlines()
    assert lines[0] == f"seed {SEED}"
    result = json.loads(lines[-1])
    assert (result["lost"], result["second_copies"], result["corrupt"]) == (0, 0, 0)
    assert (result["lost_results"], result["second_results"]) == (0, 0)
    assert result["seed"] == SEED
    assert result["kills"] > 1
    assert result["published"] > 100


def interpreted(
    program: str, *, timeout: float, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_a_signal_that_comes_where_python_drops_exceptions_stops_all_the_same() -> None:
    program = (
        "import os, signal, time\n"
        "from tests.soak.__main__ import Stopped, listen\n"
        "listen()\n"
        "class Dropped:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(0.01)\n"
        "try:\n"
        "    Dropped()\n"
        "    time.sleep(30)\n"
        "except Stopped as stopped:\n"
        "    print(stopped.args[0].name)\n"
    )
    done = interpreted(program, timeout=120)
    assert (done.stdout, done.stderr) == ("SIGTERM\n", "")


def test_a_signal_in_the_middle_of_starting_a_server_leaves_it_behind_no_more_than_others(
    tmp_path: Path,
) -> None:
    """Behind the fork, and before anybody has the process in hand."""
    program = (
        "import os, signal, subprocess, sys\n"
        "class Interrupted(subprocess.Popen):\n"
        "    def __init__(self, command, **more):\n"
        "        super().__init__(command, **more)\n"
        "        if 'redis-server' in command[0]:\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "subprocess.Popen = Interrupted\n"
        "from tests.soak.__main__ import main\n"
        "sys.exit(main())\n"
    )
    done = interpreted(program, timeout=240, TMPDIR=str(tmp_path))
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert processes_in(tmp_path) == []
