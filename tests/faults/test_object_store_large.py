"""An archive of half a GiB: bounded memory, and a killed upload that goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fuploader_dagster.contracts.object_store import ArchiveFile
from tests.servers.faulty_proxy import FaultyProxy
from tests.servers.swift import SwiftServer

MIB = 1 << 20
SIZE = 512 * MIB
PART = 16 * MIB
PARTS = SIZE // PART
MEMORY_LIMIT = 200 * MIB

_UPLOAD = """
import json, sys
from pathlib import Path
from fuploader_dagster.resources.object_stores import S3
from fuploader_dagster.contracts.object_store import ArchiveFile

settings, archive = json.loads(sys.argv[1]), json.loads(sys.argv[2])
archive["path"] = Path(archive["path"])

def progress(confirmed, total):
    print(json.dumps({"confirmed": confirmed}), flush=True)

receipt = S3(**settings).open().put("big", ArchiveFile(**archive), progress)
# Not ru_maxrss: that begins with what the parent had when it forked.
peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
print(json.dumps({"sha256": receipt.sha256, "peak": peak}), flush=True)
"""


@pytest.fixture
def archive(tmp_path: Path) -> ArchiveFile:
    """Half a GiB in which no two MiB are equal."""
    path, digest, block = tmp_path / "big.tar.zst", hashlib.sha256(), os.urandom(MIB - 8)
    with path.open("wb") as file:
        for number in range(SIZE // MIB):
            content = number.to_bytes(8, "big") + block
            digest.update(content)
            file.write(content)
    return ArchiveFile(path, SIZE, digest.hexdigest())


@pytest.mark.timeout(900)
def test_a_killed_upload_of_half_a_gibibyte_goes_on_and_stays_below_200_mb(
    archive: ArchiveFile, swift: SwiftServer, swift_proxy: FaultyProxy
) -> None:
    settings = swift.settings(endpoint_url=swift_proxy.endpoint, part_size_bytes=PART)
    bucket = settings["bucket"]
    upload = _start(settings, archive, swift.secret_key)
    peak = _kill_at(upload, SIZE // 2)
    assert peak < MEMORY_LIMIT
    held = _parts_held(swift, bucket)
    assert PARTS // 2 - 4 <= held < PARTS

    swift_proxy.play()  # count anew
    last = _last_line(_start(settings, archive, swift.secret_key))
    assert last["sha256"] == archive.sha256
    assert last["peak"] < MEMORY_LIMIT
    assert swift_proxy.forwarded["part"] == PARTS - held  # none was sent twice
    _assert_intact(swift, bucket, archive)


def _start(settings: dict[str, Any], archive: ArchiveFile, secret: str) -> subprocess.Popen[str]:
    described = {"path": str(archive.path), "size_bytes": SIZE, "sha256": archive.sha256}
    return subprocess.Popen(
        [sys.executable, "-c", _UPLOAD, json.dumps(settings), json.dumps(described)],
        env={**os.environ, "TEST_SECRET": secret},
        stdout=subprocess.PIPE,
        text=True,
    )


def _kill_at(upload: subprocess.Popen[str], confirmed_bytes: int) -> int:
    """kill -9 when so much is confirmed; returns the peak of its memory until then."""
    assert upload.stdout is not None
    for line in upload.stdout:
        if json.loads(line)["confirmed"] >= confirmed_bytes:
            break
    status = Path(f"/proc/{upload.pid}/status").read_text()
    upload.send_signal(signal.SIGKILL)
    assert upload.wait() == -signal.SIGKILL
    upload.stdout.close()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _parts_held(swift: SwiftServer, bucket: str) -> int:
    """How many parts the server has, once what was under way has arrived or broken off."""
    client, held, before = swift.client(), -1, -2
    while held != before:
        before = held
        time.sleep(1)
        uploads = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
        assert len(uploads) == 1
        answer = client.list_parts(Bucket=bucket, Key="big", UploadId=uploads[0]["UploadId"])
        held = len(answer["Parts"])
    return held


def _last_line(upload: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = upload.communicate(timeout=600)
    assert upload.returncode == 0
    last: dict[str, Any] = json.loads(output.splitlines()[-1])
    return last


def _assert_intact(swift: SwiftServer, bucket: str, archive: ArchiveFile) -> None:
    digest = hashlib.sha256()
    body = swift.client().get_object(Bucket=bucket, Key="big")["Body"]
    for chunk in body.iter_chunks(MIB):
        digest.update(chunk)
    assert digest.hexdigest() == archive.sha256
    assert "Uploads" not in swift.client().list_multipart_uploads(Bucket=bucket)
