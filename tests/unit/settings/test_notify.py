"""Notifiers in a file, in Python and in a component."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fuploader_dagster import RedisListNotices, WebhookNotices
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.settings.loading import dump_intake, load_pipelines
from fuploader_dagster.settings.pipeline import Pipeline
from tests.notifiers_for_tests import JournalNotices
from tests.settings import embedded_parts, pipeline

LISTS = {"kind": "redis_list", "url": "redis://:secret-word@h", "key": "resp_{task_id}"}
QUEUE = {"kind": "queue", "to": {"kind": "embedded", "path": "told"}}
OURS = {"kind": "tests.notifiers_for_tests:JournalNotices", "path": "journal"}
HOOK = {"kind": "webhook", "url": "https://h/x", "secret": {"env": "SECRET_OF_THE_TEST"}}


def loaded(folder: Path, notify: Any, **values: Any) -> Pipeline:
    one = {**embedded_parts(folder), "seal_each": "message", "notify": notify, **values}
    file = folder / "fuploader.yaml"
    file.write_text(yaml.safe_dump({"storage_root": str(folder), "pipelines": {"docs": one}}))
    return load_pipelines(file)["docs"]


def test_one_or_several_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_TEST", "a-secret-of-webhooks")
    (one,) = loaded(tmp_path, {**LISTS, "on": ["end"], "expires_seconds": 60}).notify
    assert isinstance(one, RedisListNotices)
    assert (one.on, one.expires_seconds, one.fields_used()) == (("end",), 60, ("task_id",))
    several = loaded(tmp_path, [LISTS, QUEUE, OURS, HOOK]).notify
    assert [type(one).__name__ for one in several] == [
        *("RedisListNotices", "QueueNotices", "JournalNotices", "WebhookNotices")
    ]
    assert isinstance(several[3], WebhookNotices)
    assert several[3].secret.get_secret_value() == "a-secret-of-webhooks"
    assert loaded(tmp_path, None).notify == ()


def test_in_python_one_needs_no_list(tmp_path: Path) -> None:
    journal = JournalNotices(path=tmp_path / "journal")
    assert pipeline(tmp_path, seal_each="message", notify=journal).notify == (journal,)


@pytest.mark.parametrize(
    ("notify", "values", "said"),
    [
        (LISTS, {"seal_each": "slot"}, "set seal_each: message"),
        ([LISTS, LISTS], {}, "twice"),
        ("redis", {}, "docs.notify must be a mapping with a `kind`"),
        ([{"kind": "redis"}], {}, "docs.notify.0.kind"),
        ({**LISTS, "key": "{task_id}"}, {}, "key must begin with a text"),
        ({**LISTS, "key": "r_{task_id.__class__}"}, {}, ""),
        ({**LISTS, "on": ["stop"]}, {}, "docs.notify"),
        ({**LISTS, "on": []}, {}, "docs.notify"),
        ({**LISTS, "expires": 5}, {}, "did you mean expires_seconds"),
        ({**HOOK, "secret": "short"}, {}, "at least 8 characters"),
        ({**HOOK, "secret": "long enough", "url": "ftp://h"}, {}, "http:// or https://"),
        ({"kind": "queue", "to": {"kind": "nothing"}}, {}, "notify.to.kind"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, notify: Any, values: dict[str, Any], said: str
) -> None:
    if not said:  # a path of fields, which no message has: harmless
        assert loaded(tmp_path, notify, **values).notify
        return
    with pytest.raises(ConfigError) as raised:
        loaded(tmp_path, notify, **values)
    assert said in str(raised.value)
    assert "secret-word" not in str(raised.value)


def test_workers_are_not_told_who_is_told(tmp_path: Path) -> None:
    assert b"secret-word" not in dump_intake(loaded(tmp_path, LISTS).intake())
