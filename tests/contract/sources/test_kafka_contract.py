"""What every message source and publisher does, on brokers that speak Kafka's protocol.

What a broker does wrong is named here, test by test; each of these tests passes on the other one.
"""

from __future__ import annotations

import pytest

from fuploader_dagster.contracts.source import SourceSettings
from fuploader_dagster.testing import MessageSourceContract
from tests.servers.kafka import APACHE, KafkaServer, kafka_settings, new_topic

NEVER_EVICTED = pytest.mark.skip(
    reason="noida-db 0.2.3 never takes a partition from a member that was killed"
)
WRONG_END = pytest.mark.skip(
    reason="Tansu 0.6.0 says that a topic ends at the first message of its last batch"
)
SLOW_TO_JOIN = pytest.mark.skip(reason="Tansu 0.6.0 takes 3 s to let a member in: minutes here")


class TestNoida(MessageSourceContract):
    @pytest.fixture
    def settings(self, noida_server: KafkaServer) -> SourceSettings:
        server = noida_server.bootstrap
        return kafka_settings(server, new_topic(server))

    @NEVER_EVICTED
    def test_what_a_killed_consumer_had_not_settled_is_delivered_again_and_marked(self) -> None:
        """Passes on Tansu."""


class TestTansu(MessageSourceContract):
    @pytest.fixture
    def settings(self, tansu_server: KafkaServer) -> SourceSettings:
        server = tansu_server.bootstrap
        return kafka_settings(server, new_topic(server))

    @WRONG_END
    def test_a_limit_in_hand_bounds_what_is_out_and_receive_does_not_wait_for_more(self) -> None:
        """Passes on noida-db, like those that follow."""

    @WRONG_END
    def test_settled_messages_are_gone_and_the_others_come_again_in_order(self) -> None: ...

    @WRONG_END
    def test_after_a_limit_of_zero_what_is_in_hand_can_be_received_and_settled_and_no_more_comes(
        self,
    ) -> None: ...

    @SLOW_TO_JOIN
    def test_a_consumer_that_leaves_many_times_with_all_it_may_hold_loses_nothing(self) -> None: ...

    @SLOW_TO_JOIN
    def test_large_messages_among_small_ones_keep_their_place_and_none_is_lost(self) -> None: ...


@pytest.mark.skipif(not APACHE, reason="KAFKA_BOOTSTRAP does not say where an Apache Kafka is")
class TestApache(MessageSourceContract):
    @pytest.fixture
    def settings(self) -> SourceSettings:
        return kafka_settings(APACHE, new_topic(APACHE))
