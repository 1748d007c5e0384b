"""A SQL table does what every source does, by a cursor and by a status column."""

from __future__ import annotations

import secrets
from typing import Any, ClassVar

import pytest

from fuploader_dagster.contracts.source import MessageSource, SourceSettings
from fuploader_dagster.testing import MessageSourceContract, message_source_contract
from tests.contract.sinks.databases import DIALECTS, Database
from tests.contract.sources.sql_queues import new_queue


class _OnATable(MessageSourceContract):
    more: ClassVar[dict[str, Any]]

    @pytest.fixture(params=DIALECTS)
    def settings(
        self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> SourceSettings:
        # MariaDB's max_allowed_packet is small here.
        monkeypatch.setattr(message_source_contract, "LARGE_BYTES", 400_000)
        database: Database = request.getfixturevalue(request.param)
        name = f"queue_{secrets.token_hex(4)}"
        own = {"position_table": f"{name}_positions", "claim_table": f"{name}_claims"}
        return new_queue(database, request.param, name, **own, **self.more)

    @pytest.mark.parametrize("commit", [3])
    @pytest.mark.parametrize("large_at", [(0, 11), (4, 5, 6)])
    def test_large_messages_among_small_ones_keep_their_place_and_none_is_lost(
        self, commit: int, large_at: tuple[int, ...]
    ) -> None:
        """Fewer of them: here nothing is framed."""
        contract = super()
        contract.test_large_messages_among_small_ones_keep_their_place_and_none_is_lost(
            commit, large_at
        )

    @pytest.mark.parametrize("seed", [0])
    def test_nothing_is_lost_when_the_limit_in_hand_changes_at_any_moment(self, seed: int) -> None:
        """Once with each database."""
        super().test_nothing_is_lost_when_the_limit_in_hand_changes_at_any_moment(seed)

    @pytest.mark.parametrize("size", [0, 300_000])
    def test_bodies_come_as_they_were_published(self, source: MessageSource, size: int) -> None:
        """Bodies are the tests' own here."""
        super().test_bodies_come_as_they_were_published(source, size)

    @pytest.mark.parametrize("name", ["deep"])
    def test_odd_headers_are_described_and_can_be_published_again(
        self, source: MessageSource, name: str
    ) -> None:
        """Headers are the tests' own here."""
        super().test_odd_headers_are_described_and_can_be_published_again(source, name)


class TestByACursor(_OnATable):
    more: ClassVar[dict[str, Any]] = {"cursor": "id", "lag_seconds": 0}


class TestByAStatus(_OnATable):
    more: ClassVar[dict[str, Any]] = {"status": {"column": "state"}}
