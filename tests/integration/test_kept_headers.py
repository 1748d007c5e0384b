"""Message headers, from a real queue to the archive and back out."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from file_uploader.packers import tar_zstd_packer

from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.dead_letters.letters import read_dead_letters
from fuploader_dagster.delivery.find_archive import find_archive
from fuploader_dagster.delivery.mended import all_mended
from fuploader_dagster.delivery.repack import repack_partitions
from fuploader_dagster.delivery.replay import Selection, replay
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.disk.header_text import folded, from_text, to_text
from fuploader_dagster.resources.sources.embedded.source import EmbeddedQueue
from fuploader_dagster.resources.sources.rabbitmq.source import RabbitMQ
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.slot import SlotOwner
from fuploader_dagster.testing.source_steps import collect
from tests.contract.sources.rabbitmq_sources import publish_raw
from tests.drains import MARK, draining, publish_bodies, seal_on_request, wait_until_handled
from tests.integration.test_cli import fuploader
from tests.properties_for_tests import EVERY_TYPE, HEADERS, short, table
from tests.servers.queue_fixtures import new_queue
from tests.servers.rabbitmq import RabbitMQServer
from tests.settings import archives_in, pipeline

NAMES = ("cmd", "content-type", "odd")
CONTENT_TYPE = 1 << 15


def keeping(folder: Path, **values: Any) -> Pipeline:
    return pipeline(
        folder,
        **{
            "source": EmbeddedQueue(path=folder / "queue"),
            "message_format": "raw",
            "headers": NAMES,
            "min_free_bytes": MARK,
            **values,
        },
    )


def drain(settings: Pipeline, messages: int) -> None:
    """Let workers handle so many messages."""
    with draining(settings.intake()):
        wait_until_handled(settings, messages)


def opened(settings: Pipeline, partition: str) -> Archive:
    return Archive.open(find_archive(partition, {"docs": settings}).source)


def shipped(settings: Pipeline) -> list[str]:
    """Partitions of all that was drained, stored."""
    seal_on_request(settings)
    return [outcome.partition for outcome in ship(settings, settings.store.open())]


def headers_in(archive: Archive) -> dict[bytes, dict[str, str]]:
    return {file.content: from_text(file.headers) for file in archive.files(lambda _: True)}


def is_text_of(text: str, value: object) -> bool:
    return text == value if isinstance(value, str) else json.loads(text) == value


@pytest.mark.parametrize("slot_format", ["segment", "files"])
def test_headers_of_every_type_go_from_rabbitmq_into_the_archive_and_back(
    tmp_path: Path, rabbitmq: RabbitMQServer, slot_format: str
) -> None:
    queue, other = new_queue(rabbitmq), new_queue(rabbitmq)
    source = RabbitMQ(url=rabbitmq.url, queue=queue)
    settings = keeping(tmp_path, source=source, slot_format=slot_format)
    flags = (CONTENT_TYPE | HEADERS).to_bytes(2, "big")
    start = flags + short(b"image/png")
    messages = [
        (name.encode(), start + table({b"Odd": value, b"left": b"V", b"CMD": b"I\0\0\0\x07"}))
        for name, (value, _) in EVERY_TYPE.items()
    ]
    publish_raw(rabbitmq, queue, [*messages, (b"without any", b"\0\0")])
    drain(settings, len(messages) + 1)
    (partition,) = shipped(settings)
    with opened(settings, partition) as archive:
        found = headers_in(archive)
        assert archive.verify().damages == []
    assert found.pop(b"without any") == {}
    assert found.keys() == {body for body, _ in messages}
    for name, (_, expected) in EVERY_TYPE.items():
        odd = found[name.encode()].pop("odd")
        assert is_text_of(odd, expected), (name, odd)
        assert found[name.encode()] == {"cmd": "7", "content-type": "image/png"}

    target = RabbitMQ(url=rabbitmq.url, queue=other)
    publisher = target.publisher()
    selection = Selection([partition], None, target.describe())
    report = replay(selection, settings, publisher, lambda key: opened(settings, key))
    publisher.close()
    assert (report.published, report.refused) == (len(messages) + 1, [])
    consumer = target.source(prefetch=100)
    consumer.open()
    wanted = {folded(name): name for name in NAMES}
    again = collect(consumer, len(messages) + 1)
    came = {one.body: consumer.headers_of(one, wanted) for one in again}
    consumer.close()
    with opened(settings, partition) as archive:
        assert came == headers_in(archive)


def test_too_many_headers_make_a_dead_letter_and_the_others_go_on(tmp_path: Path) -> None:
    settings = keeping(tmp_path)
    publish_bodies(settings, [b"large"], cmd="x" * 20_000)
    publish_bodies(settings, [b"small"], cmd="x" * 2_000, other="y" * 20_000)
    drain(settings, 2)
    (partition,) = shipped(settings)
    with opened(settings, partition) as archive:
        assert headers_in(archive) == {b"small": {"cmd": "x" * 2_000}}
    (letter,) = read_dead_letters(settings.layout)
    assert letter.body == b"large"
    assert "its headers cmd have 20,010 bytes, and at most 16,384 are kept" in letter.reason


def sealed_with_headers(settings: Pipeline) -> dict[bytes, dict[str, str]]:
    """Seal a slot of some files, and return their headers by content."""
    kept: dict[bytes, dict[str, str]] = {b"0": {}}
    kept |= {b"%d" % n: {"cmd": f"größe/{n}", "odd": "o" * n} for n in range(1, 700, 50)}
    with SlotOwner(settings, 0) as slot:
        for content, headers in kept.items():
            slot.add(f"{content.decode()}.json", content, to_text(headers))
        assert slot.seal("request") is not None
    return kept


@pytest.mark.parametrize("slot_format", ["segment", "files"])
def test_the_command_shows_them_and_repacking_keeps_them(tmp_path: Path, slot_format: str) -> None:
    settings = keeping(tmp_path, slot_format=slot_format)
    kept = sealed_with_headers(settings)
    store = settings.store.open()
    (partition,) = [outcome.partition for outcome in ship(settings, store)]
    (archive,) = archives_in(tmp_path / "objects")
    listed = fuploader(tmp_path, "ls", str(archive), "--json")
    members = json.loads(listed.stdout)["members"]
    assert {one["name"]: one.get("headers", {}) for one in members} == {
        f"{content.decode()}.json": headers for content, headers in kept.items()
    }
    now = settings.model_copy(update={"key": "again/{archive}", "compression_level": 9})
    list(repack_partitions([partition], now, store, lambda key: opened(settings, key)))
    again = tmp_path / "objects" / "again" / archive.name
    assert again.read_bytes() != archive.read_bytes()
    with Archive.open(again) as repacked:
        assert headers_in(repacked) == kept


def test_a_damaged_slot_is_mended_with_the_headers_of_what_is_proven(tmp_path: Path) -> None:
    settings = keeping(tmp_path)
    kept = sealed_with_headers(settings)
    (segment,) = settings.layout.root.glob("sealed/*/*/segment.tar")
    content = bytearray(segment.read_bytes())
    content[content.index("größe/101".encode())] ^= 1
    segment.write_bytes(content)
    list(ship(settings, settings.store.open()))
    del kept[b"101"]
    (record,) = all_mended(settings.layout)
    assert record.lost == ["101.json"]
    with opened(settings, record.stored_as) as archive:
        assert headers_in(archive) == kept


def test_a_packer_of_the_users_own_gets_the_files_without_them(tmp_path: Path) -> None:
    settings = keeping(tmp_path, packer=tar_zstd_packer)
    kept = sealed_with_headers(settings)
    list(ship(settings, settings.store.open()))
    (archive,) = archives_in(tmp_path / "objects")
    with Archive.open(archive) as packed:
        assert headers_in(packed) == {content: {} for content in kept}


def test_tar_alone_unpacks_an_archive_with_headers_without_a_word(tmp_path: Path) -> None:
    settings = keeping(tmp_path)
    kept = sealed_with_headers(settings)
    list(ship(settings, settings.store.open()))
    (archive,) = archives_in(tmp_path / "objects")
    out = tmp_path / "out"
    out.mkdir()
    done = subprocess.run(
        ["tar", "--zstd", "-xf", archive], cwd=out, capture_output=True, check=True
    )
    assert (done.stdout, done.stderr) == (b"", b"")
    assert sorted(path.read_bytes() for path in out.iterdir()) == sorted(kept)
