"""From topics of Kafka to verified archives, without Dagster; and back, by replay."""

from __future__ import annotations

from pathlib import Path

from fuploader_dagster import run_pipeline
from fuploader_dagster.dead_letters.letters import read_dead_letters
from tests.drains import MARK
from tests.servers.kafka import KafkaServer, kafka_settings, new_topic
from tests.settings import archived_files, pipeline


def test_topics_are_drained_into_archives_with_what_is_asked_for_of_each_message(
    tmp_path: Path, noida_server: KafkaServer
) -> None:
    server = noida_server.bootstrap
    name = new_topic(server, partitions=3)
    settings = pipeline(
        tmp_path,
        source=kafka_settings(server, name),
        message_format="json",
        name_fields=("mid",),
        headers=("partition", "offset", "cmd"),
        min_free_bytes=MARK,
        process_count=2,
    )
    publisher = settings.source.publisher()
    bodies = {f"m{number}": b'{"mid": "m%d"}' % number for number in range(300)}
    publisher.publish((body, {"cmd": "x"}) for body in bodies.values())
    publisher.publish([(b"no json", {})])
    shipped = run_pipeline(settings, until_empty=True)
    assert (shipped.messages, shipped.failures) == (300, ())  # and one that is none
    found = archived_files(tmp_path / "objects")
    assert sorted(found) == sorted(bodies)
    assert all(found[name] == [body] for name, body in bodies.items())
    (letter,) = read_dead_letters(settings.layout)
    assert letter.body == b"no json"
    assert publisher.backlog() == 0
    publisher.close()
    assert run_pipeline(settings, until_empty=True).messages == 0
