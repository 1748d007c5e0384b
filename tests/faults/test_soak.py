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
from tests.soak.plan import (
    LIMITED,
    PAUSED,
    PLAIN,
    VICTIMS,
    body_of,
    content_of,
    is_deadly,
    is_poison,
    is_unprocessable,
    kills,
    name_of,
    number_of,
    outgoing,
    pause_of,
    pauses,
    queue_of,
    results_of,
)
from tests.soak.queues import ARGUMENTS
from tests.soak.verdict import Letter, dead_letters_below, judge

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
    asked = list(islice(pauses(SEED, 8), 12))
    assert asked == list(islice(pauses(SEED, 8), 12)) != list(islice(pauses(SEED + 1, 8), 12))
    assert {pause.parts for pause in asked} == set(PAUSED)
    assert {(pause.pipeline, pause.apart) for pause in asked} == {
        (name, apart) for name in (PLAIN, LIMITED) for apart in (False, True)
    }
    assert body_of(SEED, 5) == body_of(SEED, 5) != body_of(SEED + 1, 5)


def test_a_soak_has_messages_of_every_kind() -> None:
    """What a classic queue gets, and what the quorum queue with its own parser gets."""
    assert {queue_of(number) for number in POISON if not is_deadly(SEED, number)} == set(ARGUMENTS)
    assert any(is_deadly(SEED, number) for number in POISON)
    for queue in ARGUMENTS:
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
    bodies += letters_of_items(members)
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


STORED = [number for number in GOOD if queue_of(number) == PLAIN and number < 1_000]
MEMBERS = [("a", name_of(n), content_of(SEED, n)) for n in STORED]
RESULTS = [("a", *one) for n in STORED for one in results_of(SEED, n)]


def letters_of_items(members: list[tuple[str, str, bytes]]) -> list[Letter]:
    """The letters that the originals in the archive `a` must have."""
    return [
        Letter(content, name, "process", "a", position)
        for position, (archive, name, content) in enumerate(members)
        if archive == "a" and is_unprocessable(number_of(name) or 0)
    ]


def judged(results: list[tuple[str, str, bytes]], letters: list[Letter]) -> tuple[int, ...]:
    """Lost, second and wrong results; second and wrong dead letters."""
    found = judge(SEED, [], iter(MEMBERS + results), iter(letters))
    assert (found.second_copies, found.corrupt) == (0, 0)
    return (
        *(found.lost_results, found.second_results, found.wrong_results),
        *(found.dead_letter_copies, found.wrong_dead_letters),
    )


def test_the_judge_counts_results_that_are_lost_doubled_or_wrong() -> None:
    letters = letters_of_items(MEMBERS)
    none = next(n for n in STORED if not results_of(SEED, n) and not is_unprocessable(n))
    assert len(RESULTS) > 400
    assert len(letters) > 10
    assert any(name.endswith("~2.json") for _, name, _ in RESULTS)
    assert judged(RESULTS, letters) == (0, 0, 0, 0, 0)
    _, name, content = RESULTS[0]
    rest = RESULTS[1:]
    assert judged(rest, letters) == (1, 0, 0, 0, 0)
    assert judged([*RESULTS, RESULTS[0]], letters) == (0, 1, 0, 0, 0)
    assert judged([*rest, ("a", name, content[:-1])], letters) == (1, 0, 1, 0, 0)
    assert judged([*rest, ("b", name, content)], letters) == (1, 0, 1, 0, 0)
    of_none = ("a", f"results/{name_of(none)}", content)
    assert judged([*RESULTS, of_none], letters) == (0, 0, 1, 0, 0)


def test_the_judge_counts_letters_of_files_that_are_lost_doubled_or_wrong() -> None:
    letter, *rest = letters_of_items(MEMBERS)
    assert judged(RESULTS, rest) == (1, 0, 0, 0, 0)
    assert judged(RESULTS, [letter, letter, *rest]) == (0, 0, 0, 1, 0)
    fine = Letter(MEMBERS[0][2], name_of(STORED[0]), "process", "a", 0)
    assert not is_unprocessable(STORED[0])
    assert judged(RESULTS, [fine, letter, *rest]) == (0, 0, 0, 0, 1)
    for wrong in (
        letter._replace(body=b"another"),
        letter._replace(stage="intake"),
        letter._replace(partition="b"),
        letter._replace(partition=""),
        letter._replace(position=letter.position + 1),
    ):
        assert judged(RESULTS, [wrong, *rest]) == (1, 0, 0, 0, 1), wrong


def test_letters_are_read_with_what_they_say_about_files(tmp_path: Path) -> None:
    """A line that a crash has torn is left out."""
    item = {"name": "m", "stage": "process", "partition": "p", "position": 0}
    lines = [{"body": "eA==", "item": item}, {"body": "eQ==", "item": None}, {"body": "eg=="}]
    text = "\n".join(map(json.dumps, lines))
    (tmp_path / "20261127-process.jsonl").write_text(text + "\n" + text[:20])
    expected = [Letter(b"x", "m", "process", "p", 0), Letter(b"y"), Letter(b"z")]
    assert list(dead_letters_below(tmp_path)) == expected


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
    check_short_soak(tmp_path, "rabbitmq")


def check_short_soak(tmp_path: Path, source: str) -> None:
    """The soak as `make soak` runs it, with kills that are closer together."""
    done = subprocess.run(
        [sys.executable, *SHORT, "--seed", str(SEED), "--source", source],
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
    assert result["pauses"], "whatever was paused was resumed"
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
