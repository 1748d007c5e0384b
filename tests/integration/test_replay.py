"""Replay: what was archived goes to a queue again, in order, and goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.assets.partitions import RANGE_END_TAG, RANGE_START_TAG, Names
from fuploader_dagster.contracts.source import MessagePublisher
from fuploader_dagster.definitions import build_definitions
from fuploader_dagster.delivery import replay as replay_module
from fuploader_dagster.delivery.find_archive import find_archive
from fuploader_dagster.delivery.replay import (
    ReplayReport,
    Selection,
    another_queue,
    progress_path,
    replay,
    select,
)
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.disk.layout import PartitionKey
from fuploader_dagster.errors import ConfigError, DamagedArchive, MessageRefused, SourceUnavailable
from fuploader_dagster.processing.decoder import Decoder, File
from fuploader_dagster.processing.envelope import content_type_of
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQ
from fuploader_dagster.settings.pipeline import Pipeline
from tests.integration.test_cli import configure, fuploader
from tests.lives import pack_by_hand
from tests.processors_for_tests import Script, script
from tests.servers.queue_fixtures import waiting
from tests.servers.rabbitmq import RabbitMQServer
from tests.settings import pipeline, sealed

JSON, TEXT, BYTES = b'{"n": 1}', "kein JSON: ü".encode(), b"\xff\x00"


def stored(settings: Pipeline, *slots: dict[str, bytes]) -> list[str]:
    """Partition keys of the slots, uploaded."""
    keys = [sealed(settings, files).seal.partition for files in slots]
    assert {one.partition for one in ship(settings, settings.store.open())} == set(keys)
    return keys


def with_queue(folder: Path, **values: Any) -> Pipeline:
    return pipeline(folder, source=EmbeddedQueue(path=folder / "queue"), **values)


def files_in(settings: Pipeline, source: EmbeddedQueue | None = None) -> list[File]:
    """What a drain would make of what waits in the queue, in its order."""
    consumer = (source or settings.source).source(prefetch=10_000)
    consumer.open()
    messages = consumer.receive(10_000, 0.2)
    consumer.close()
    files = Decoder(settings).decode(messages)
    assert all(isinstance(one, File) for one in files)
    return [one for one in files if isinstance(one, File)]


def run(
    settings: Pipeline,
    partitions: list[str],
    pattern: str | None = None,
    publisher: MessagePublisher | None = None,
) -> ReplayReport:
    selection = Selection(partitions, pattern, settings.source.describe())
    return replay(
        selection,
        settings,
        publisher or settings.source.publisher(),
        lambda key: Archive.open(find_archive(key, {"docs": settings}).source),
    )


class FailsAfter(MessagePublisher):
    """A publisher whose broker goes away after some messages."""

    def __init__(self, publisher: MessagePublisher, messages: int) -> None:
        self._publisher, self._left = publisher, messages

    def publish(self, messages: Iterable[tuple[bytes, Mapping[str, Any]]]) -> int:
        batch = list(messages)
        if len(batch) > self._left:
            raise SourceUnavailable("the broker went away")
        self._left -= len(batch)
        return self._publisher.publish(batch)

    def backlog(self) -> int:
        return self._publisher.backlog()

    def close(self) -> None:
        self._publisher.close()


@pytest.mark.parametrize("message_format", ["envelope", "raw"])
def test_every_message_comes_again_in_order_with_its_name_and_bytes(
    tmp_path: Path, message_format: str
) -> None:
    settings = with_queue(tmp_path, message_format=message_format)
    slots = [{"b.json": JSON, "a.txt": TEXT}, {"c.bin": BYTES, "d.json": b""}]
    keys = stored(settings, *slots)
    assert run(settings, keys).published == 4
    assert files_in(settings) == [File(n, b) for files in slots for n, b in files.items()]


@pytest.mark.parametrize(
    ("content", "expected"),
    [(JSON, "json"), (TEXT, "text"), (BYTES, "bytes"), (b"", "text"), (b"[" * 100_000, "text")],
)
def test_the_content_type_is_one_that_readers_accept(content: bytes, expected: str) -> None:
    assert content_type_of(content) == expected


@pytest.mark.parametrize("packer", [None, pack_by_hand])
def test_what_was_made_of_the_messages_is_never_published(tmp_path: Path, packer: Any) -> None:
    settings = with_queue(tmp_path, process=Script(), message_format="raw", packer=packer)
    files = {f"{n}.json": script(results=n % 3) for n in range(7)}
    (key,) = stored(settings, files)
    with find_archive_of(settings, key) as archive:
        assert len(archive.names()) == 7 + 6
    assert run(settings, [key]).published == 7
    assert files_in(settings) == [File(n, b) for n, b in files.items()]
    assert run(settings, [key], "results/*").published == 0


@pytest.mark.parametrize("packer", [None, pack_by_hand])
def test_an_archive_of_results_alone_has_nothing_to_replay(tmp_path: Path, packer: Any) -> None:
    process = Script(keep="results")
    settings = with_queue(tmp_path, process=process, message_format="raw", packer=packer)
    (first,) = stored(settings, {"a.json": script()})
    with_originals = with_queue(tmp_path, process=Script(), message_format="raw", packer=packer)
    (second,) = stored(with_originals, {"b.json": script()})
    report = run(settings, [first, second])
    assert (report.published, report.only_results) == (1, [first])
    assert [file.name for file in files_in(settings)] == ["b.json"]


def find_archive_of(settings: Pipeline, key: str) -> Archive:
    return Archive.open(find_archive(key, {"docs": settings}).source)


def test_an_interrupted_replay_goes_on_behind_what_was_confirmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_module, "BATCH_MESSAGES", 10)
    settings = with_queue(tmp_path)
    slots = [{f"{s}-{n}.json": b"%d" % n for n in range(25)} for s in range(3)]
    keys = stored(settings, *slots)
    with pytest.raises(SourceUnavailable):
        run(settings, keys, publisher=FailsAfter(settings.source.publisher(), 40))
    report = run(settings, keys)
    assert (report.before, report.published) == (35, 40)
    assert [file.name for file in files_in(settings)] == [n for files in slots for n in files]
    assert not progress_path(
        settings.layout, Selection(keys, None, settings.source.describe())
    ).exists()
    assert run(settings, keys).published == 75  # a finished one begins anew


class TakesOnlySmall(FailsAfter):
    """A queue with a limit for the size of a message, and a broker that goes away."""

    def publish(self, messages: Iterable[tuple[bytes, Mapping[str, Any]]]) -> int:
        batch = list(messages)
        for position, (body, _) in enumerate(batch):
            if len(body) > 100:
                super().publish(batch[:position])
                raise MessageRefused("too large", position=position, confirmed=position)
        return super().publish(batch)


def test_what_the_queue_will_never_take_is_named_and_the_others_are_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_module, "BATCH_MESSAGES", 5)
    settings = with_queue(tmp_path, message_format="raw")
    files = {f"{n:02}": b"x" * (1_000 if n in (3, 11) else 1) for n in range(20)}
    keys = stored(settings, files)
    with pytest.raises(SourceUnavailable):
        run(settings, keys, publisher=TakesOnlySmall(settings.source.publisher(), 12))
    report = run(settings, keys, publisher=TakesOnlySmall(settings.source.publisher(), 100))
    assert [reason.split(":")[0] for reason in report.refused] == ["'03'", "'11'"]
    assert report.before + report.published == 18
    assert {file.name for file in files_in(settings)} == set(files) - {"03", "11"}


def test_what_is_damaged_is_not_published_and_named(tmp_path: Path) -> None:
    settings = with_queue(tmp_path)
    (key,) = stored(settings, {"a.json": JSON})
    (archive,) = (tmp_path / "objects").rglob("*.tar.zst")
    content = bytearray(archive.read_bytes())
    content[20] ^= 1
    archive.write_bytes(content)
    with pytest.raises(DamagedArchive, match=archive.name):
        run(settings, [key])
    assert files_in(settings) == []


def test_time_and_pattern_select_archives_in_order(tmp_path: Path) -> None:
    settings = with_queue(tmp_path)
    keys = stored(settings, {"a.json": JSON}, {"b.json": JSON}, {"c.json": JSON})
    second = PartitionKey.parse(keys[1])
    assert second is not None
    moment = second.sealed_at
    assert select(settings, since=moment) == keys[1:]
    assert select(settings, until=moment) == keys[:1]
    assert select(settings, since=moment, until=moment + timedelta(milliseconds=1)) == keys[1:2]
    assert select(settings, pattern="[ac].json") == [keys[0], keys[2]]
    settings.layout.catalog.unlink()
    assert select(settings, pattern="[ac].json") == keys  # nobody knows: all are looked into
    with pytest.raises(ConfigError, match="partitions and a time"):
        select(settings, partitions=keys[:1], since=moment)
    assert run(settings, keys, "[ac].json").published == 2
    assert [file.name for file in files_in(settings)] == ["a.json", "c.json"]


def test_another_queue_of_the_same_broker(
    rabbitmq: RabbitMQServer, fresh_queue: Callable[..., str], tmp_path: Path
) -> None:
    own, other = fresh_queue(), fresh_queue()
    settings = pipeline(tmp_path, source=RabbitMQ(queue=own, url=rabbitmq.url))
    keys = stored(settings, {"a.json": JSON, "b.json": JSON})
    publisher = another_queue(settings.source, other).publisher()
    assert run(settings, keys, publisher=publisher).published == 2
    publisher.close()
    assert (waiting(rabbitmq, own), waiting(rabbitmq, other)) == (0, 2)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(tmp_path)
    monkeypatch.chdir(tmp_path)
    settings = with_queue(tmp_path)
    keys = stored(settings, {"a.json": JSON}, {"b.json": JSON})
    answer = fuploader(tmp_path, "replay", keys[1])
    assert answer.returncode == 0, answer.stderr
    assert "1 message of 1 archive confirmed by embedded queue" in answer.stdout
    answer = fuploader(tmp_path, "replay", "--since", "2020-01-01", "--queue", "another")
    assert answer.returncode == 0, answer.stderr
    assert [file.name for file in files_in(settings)] == ["b.json"]
    other = EmbeddedQueue(path=tmp_path / "another")
    assert [file.name for file in files_in(settings, other)] == ["a.json", "b.json"]
    assert fuploader(tmp_path, "replay").returncode == 2


@pytest.mark.parametrize("way", ["partition", "range", "config"])
def test_the_job_replays_partitions_that_were_picked_in_the_ui(tmp_path: Path, way: str) -> None:
    settings = with_queue(tmp_path)
    names = Names.of(settings)
    keys = stored(settings, {"a.json": JSON}, {"b.json": JSON}, {"c.json": JSON})
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(names.partition_set, keys)
        job = build_definitions(settings).resolve_job_def(names.replay_job)
        if way == "partition":
            result = job.execute_in_process(instance=instance, partition_key=keys[1])
            expected = ["b.json"]
        elif way == "range":
            tags = {RANGE_START_TAG: keys[1], RANGE_END_TAG: keys[2]}
            result = job.execute_in_process(instance=instance, tags=tags)
            expected = ["b.json", "c.json"]
        else:
            config = {"partitions": [keys[2], keys[0]], "queue": str(tmp_path / "other")}
            ops = {"ops": {f"{names.replay_job}_op": {"config": config}}}
            result = job.execute_in_process(instance=instance, run_config=ops)
            expected = []
            other = EmbeddedQueue(path=tmp_path / "other")
            assert [file.name for file in files_in(settings, other)] == ["a.json", "c.json"]
    assert result.success
    assert [file.name for file in files_in(settings)] == expected


def launched(settings: Pipeline, config: dict[str, Any]) -> tuple[bool, list[str]]:
    """A run of the job from the launchpad: whether it succeeded, and what its log says."""
    names = Names.of(settings)
    ops = {"ops": {f"{names.replay_job}_op": {"config": config}}}
    with dg.DagsterInstance.ephemeral() as instance:
        job = build_definitions(settings).resolve_job_def(names.replay_job)
        result = job.execute_in_process(instance=instance, run_config=ops, raise_on_error=False)
        logged = [entry.user_message for entry in instance.all_logs(result.run_id)]
        failed = [
            str(event.step_failure_data.error)
            for event in result.all_events
            if event.is_step_failure
        ]
    return result.success, logged + failed


def test_the_job_says_what_goes_where_before_it_publishes_and_only_that_in_a_dry_run(
    tmp_path: Path,
) -> None:
    settings = with_queue(tmp_path)
    keys = stored(settings, {"a.json": JSON, "b.json": JSON}, {"c.json": JSON})
    success, said = launched(settings, {"partitions": keys, "dry_run": True})
    assert success
    (line,) = [one for one in said if one.startswith("dry run: ")]
    assert "3 messages of 2 archives go to" in line
    assert "the pipeline's own queue, which will store them again as new files" in line
    assert files_in(settings) == []
    other = {"partitions": keys[:1], "queue": str(tmp_path / "other"), "name": "a*"}
    success, said = launched(settings, other)
    assert success
    (line,) = [one for one in said if " go to " in one]
    assert line.startswith("at most 2 messages of 1 archive go to")
    assert "the pipeline's own queue" not in line


@pytest.mark.parametrize("config", [{}, {"since": "yesterday"}, {"partitions": ["no key"]}])
def test_the_job_refuses_to_choose_for_a_person_and_is_not_tried_again(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    settings = with_queue(tmp_path)
    stored(settings, {"a.json": JSON})
    success, said = launched(settings, config)
    assert not success
    assert any("nothing was published: " in one for one in said)
    assert files_in(settings) == []


def test_the_launchpad_shows_all_that_the_job_can_be_told(tmp_path: Path) -> None:
    settings = with_queue(tmp_path)
    names = Names.of(settings)
    job = build_definitions(settings).resolve_job_def(names.replay_job)
    assert job.partitioned_config is not None
    shown = job.partitioned_config.get_run_config_for_partition_key("any")
    assert set(shown["ops"][f"{names.replay_job}_op"]["config"]) == {
        "partitions", "since", "until", "name", "queue", "dry_run"
    }  # fmt: skip
