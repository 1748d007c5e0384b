"""What the ticks of the drain sensor say about a worker that reads topics of Kafka."""

from __future__ import annotations

from pathlib import Path

from fuploader_dagster.health.status import status_of
from fuploader_dagster.intake.supervisor import supervisor_for
from tests.drains import wait_for
from tests.servers.kafka import KafkaServer, kafka_settings, new_topic
from tests.settings import pipeline
from tests.ticking import Ticking


def test_a_tick_and_status_say_which_partitions_a_worker_reads(
    tmp_path: Path, noida_server: KafkaServer
) -> None:
    server = noida_server.bootstrap
    name = new_topic(server, partitions=4)
    settings = pipeline(tmp_path, source=kafka_settings(server, name), min_free_bytes=0)
    ticking = Ticking(settings)
    try:
        wait_for(
            lambda: f"in total; worker 0 reads {name}[0-3]" in str(ticking.tick().skip_reason),
            settings,
            "the partitions",
        )
        (worker,) = status_of(settings)["workers"]
        assert worker.reads == f"{name}[0-3]"
    finally:
        supervisor_for(settings.intake()).stop()
