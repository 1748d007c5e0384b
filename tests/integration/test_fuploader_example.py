"""The example of FUploader's own page, its four functions untouched, on a COS that checks."""

from __future__ import annotations

import importlib.metadata
import io
import json
import re
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import file_uploader
import pytest
import zstandard

from fuploader_dagster import run_pipeline
from fuploader_dagster.settings.loading import load_pipeline
from tests.drains import MARK
from tests.servers.fake_cos import FakeCOS

MODULE = "douyin_as_documented"


def strategies(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example as its package's page has it, up to the functions, as a module."""
    described = importlib.metadata.metadata("FUploader")
    page = described["Description"] or str(described)
    (example,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        if "def douyin_message_parser" in block
    )
    (folder / f"{MODULE}.py").write_text(example.split("TASK_NAME")[0], "utf-8")
    monkeypatch.syspath_prepend(folder)
    return importlib.import_module(MODULE)


def test_its_four_functions_run_here_untouched(
    tmp_path: Path, fake_cos: FakeCOS, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs: Any = strategies(tmp_path, monkeypatch)
    monkeypatch.setenv("TEST_COS_ID", fake_cos.key_id)
    monkeypatch.setenv("TEST_COS_SECRET", fake_cos.secret)
    settings = {
        "name": "douyin_aweme",
        "storage_root": str(tmp_path / "douyin_output"),
        "source": {"kind": "embedded", "path": str(tmp_path / "queue")},
        "state": {"kind": "sqlite", "path": str(tmp_path / "state.sqlite")},
        "store": {
            "kind": "cos",
            "bucket": fake_cos.bucket,
            "region": fake_cos.region,
            "address": f"127.0.0.1:{fake_cos.port}",
            "scheme": "http",
            "secret_id": {"env": "TEST_COS_ID"},
            "secret_key": {"env": "TEST_COS_SECRET"},
        },
        "parser": f"{MODULE}:douyin_message_parser",
        "file_name": f"{MODULE}:douyin_file_name_generator",
        "packer": f"{MODULE}:tar_zstd_packer",
        "key": f"{MODULE}:douyin_remote_key_generator",
        "min_free_bytes": MARK,
    }
    pipeline = load_pipeline(settings, where="test")
    bodies = [
        json.dumps(
            file_uploader.encode_file_message(
                file_uploader.FileMessage(document(number), file_name=f"73{number:04d}")
            )
        ).encode()
        for number in range(40)
    ]
    publisher = pipeline.source.publisher()
    publisher.publish((body, {}) for body in bodies)
    publisher.close()
    assert run_pipeline(pipeline, until_empty=True).messages == 40

    parsed = [theirs.douyin_message_parser(body) for body in bodies]
    expected = {
        theirs.douyin_file_name_generator(data): json.dumps(data, ensure_ascii=False).encode()
        for data in parsed
    }
    found = {}
    for key, stored in fake_cos.files.items():
        assert re.fullmatch(r"douyin/aweme/\d{8}/[^/]+\.tar\.zst", key)
        tar = zstandard.ZstdDecompressor().decompressobj().decompress(stored.content)
        with tarfile.open(fileobj=io.BytesIO(tar)) as members:
            for member in members:
                if file := members.extractfile(member):
                    found[member.name.rpartition("/")[2]] = file.read()
    assert found == expected


def document(number: int) -> dict[str, Any]:
    return {"desc": f"作品 {number}", "statistics": {"digg_count": number}}
