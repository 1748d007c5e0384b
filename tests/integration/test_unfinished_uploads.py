"""Unfinished uploads that no archive needs are aborted; those of others are left alone."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from fuploader_dagster.delivery.recovery import abort_unneeded_uploads
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.resources.object_stores import S3
from tests.servers.swift import SwiftServer
from tests.settings import pipeline, sealed


def test_only_old_uploads_of_archives_that_are_stored_are_aborted(
    swift: SwiftServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", swift.secret_key)
    bucket = swift.fresh_bucket()
    store = S3(
        bucket=bucket,
        endpoint_url=swift.endpoint,
        region=swift.region,
        access_key_id=swift.access_key,
        secret_access_key={"env": "SECRET"},
    )
    settings = pipeline(tmp_path, store=store)
    stored = sealed(settings, {"a": b"a"}).seal
    assert len(list(ship(settings, store.open()))) == 1
    waiting = sealed(settings, {"b": b"b"}).seal
    client = swift.client()
    keys = [f"old/{stored.archive}", f"old/{waiting.archive}", "somebody/else.tar.zst"]
    for key in keys:
        client.create_multipart_upload(Bucket=bucket, Key=key)
    now = datetime.now(tz=timezone.utc)
    assert abort_unneeded_uploads(settings, store.open(), now) == 0
    assert abort_unneeded_uploads(settings, store.open(), now + timedelta(hours=2)) == 1
    left = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert sorted(upload["Key"] for upload in left) == sorted(keys[1:])
