"""Names are UTF-8 whatever the locale, or nothing starts and a sentence says what to set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import yaml

from fuploader_dagster.delivery.pack import pack
from fuploader_dagster.intake.worker import EXIT_ERROR, Job
from fuploader_dagster.settings.loading import dump_intake, load_pipelines
from tests.drains import MARK, publish, wait_until_stored
from tests.settings import archived_files, embedded_parts, pipeline, sealed

NO_UTF8 = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
"""A locale in which Python writes names in ASCII, as it writes them in GBK under zh_CN.GBK."""
CONTENTS = {f"视频-{n}-🎉é.json": '{"名": "é"}'.encode() * n for n in range(5)}
FUPLOADER = Path(sys.executable).with_name("fuploader")


def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        check=False,
        timeout=120,
    )


def configured(folder: Path, **values: object) -> Path:
    path = folder / "fuploader.yaml"
    parts = {
        **embedded_parts(folder),
        "storage_root": str(folder / "data"),
        "min_free_bytes": MARK,
    }
    path.write_text(yaml.safe_dump({"pipelines": {"docs": {**parts, **values}}}))
    return path


@pytest.mark.parametrize(
    "arguments",
    [
        ["drain"],
        ["status"],
        ["seal"],
        ["ship"],
        ["recover"],
        ["restore", "some.tar.zst", "out"],
    ],
)
def test_no_command_starts_where_names_are_not_utf8_and_it_says_what_to_set(
    tmp_path: Path, arguments: list[str]
) -> None:
    configured(tmp_path)
    done = run(tmp_path, str(FUPLOADER), *arguments, **NO_UTF8)
    assert done.returncode == 2
    assert b"write file names in ascii, not in UTF-8 (set PYTHONUTF8=1 or LC_ALL=" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fuploader.yaml"]


def test_no_code_location_loads_where_names_are_not_utf8(tmp_path: Path) -> None:
    path = configured(tmp_path)
    code = (
        "from pathlib import Path\n"
        "from fuploader_dagster.settings.loading import load_pipelines\n"
        f"load_pipelines(Path({str(path)!r}))"
    )
    done = run(tmp_path, sys.executable, "-c", code, **NO_UTF8)
    assert b"errors.ConfigError: " in done.stderr
    assert b"pipelines.docs: the locale of this process makes it write file names in" in done.stderr


def test_no_worker_drains_where_names_are_not_utf8(tmp_path: Path) -> None:
    settings = load_pipelines(configured(tmp_path))["docs"].intake()
    read, write = os.pipe()
    job = Job(
        worker=0,
        lease_seconds=60,
        sys_path=sys.path,
        last_words=write,
        intake=msgspec.Raw(dump_intake(settings)),
    )
    worker = subprocess.Popen(
        [sys.executable, "-m", "fuploader_dagster.intake.worker"],
        stdin=subprocess.PIPE,
        env={**os.environ, **NO_UTF8},
        pass_fds=[write],
    )
    os.close(write)
    assert worker.stdin is not None
    with worker.stdin:  # open until it ended: a worker whose supervisor left ends without a word
        worker.stdin.write(msgspec.json.encode(job) + b"\n")
        worker.stdin.flush()
        assert worker.wait(120) == EXIT_ERROR
    with os.fdopen(read, "rb") as words:
        assert b"set PYTHONUTF8=1 or LC_ALL=C.UTF-8" in words.read()


@pytest.mark.parametrize("slot_format", ["segment", "files"])
@pytest.mark.parametrize("environment", [{"LC_ALL": "C"}, {**NO_UTF8, "PYTHONUTF8": "1"}])
def test_as_the_sentence_says_every_name_goes_the_whole_way(
    tmp_path: Path, slot_format: str, environment: dict[str, str]
) -> None:
    path = configured(tmp_path, slot_format=slot_format)
    settings = load_pipelines(path)["docs"]
    publish(settings, CONTENTS)
    drain = subprocess.Popen(
        [str(FUPLOADER), "drain"], cwd=tmp_path, env={**os.environ, **environment}
    )
    try:
        wait_until_stored(settings, CONTENTS)
    finally:
        drain.terminate()
        drain.wait()
    for command in (["seal"], ["ship"]):
        done = run(tmp_path, str(FUPLOADER), *command, **environment)
        assert done.returncode == 0, done.stderr.decode()
    (archive,) = (tmp_path / "objects").rglob("*.tar.zst")
    done = run(tmp_path, str(FUPLOADER), "restore", str(archive), "out", **environment)
    assert done.returncode == 0, done.stderr.decode()
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == CONTENTS


def test_what_was_stored_under_names_of_another_locale_is_drained_on_and_packed(
    tmp_path: Path,
) -> None:
    settings = pipeline(tmp_path, slot_format="files", min_free_bytes=MARK)
    names = {name.replace("🎉", ""): content for name, content in CONTENTS.items()}
    slot = sealed(settings, names)
    for name in names:
        (slot.files / name).rename(slot.files / os.fsdecode(name.encode("gb18030")))
    pack(slot, settings)
    assert archived_files(tmp_path) == {name: [content] for name, content in names.items()}
    assert slot.unrecognised() == []
