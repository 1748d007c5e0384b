"""A `fuploader.yaml` for users of FUploader, from its environment and a few answers.

What FUploader took as arguments in Python is asked for. What it took from the environment stays
there and works unchanged. Secrets are named, never written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from fuploader_dagster.disk.durable import create_durably
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.settings.pipeline import DEFAULT_KEY

_STORES: dict[str, dict[str, str]] = {
    "cos": {"secret_id": "COS_SECRET_ID", "secret_key": "COS_SECRET_KEY"},
    "oss": {"access_key_id": "OSS_ACCESS_KEY_ID", "access_key_secret": "OSS_ACCESS_KEY_SECRET"},
    "s3": {"access_key_id": "AWS_ACCESS_KEY_ID", "secret_access_key": "AWS_SECRET_ACCESS_KEY"},
}
"""By store, each setting and the variable that holds it."""
_ENDPOINTS = {"cos": "endpoint", "oss": "endpoint", "s3": "endpoint_url"}
_TEXTS = {
    "name": "FUploader's task_name",
    "storage_root": "FUploader's storage_root",
    "queue": "the queue's name",
    "provider": "the object store: cos, oss or s3",
    "bucket": "the bucket",
    "region": "its region",
    "endpoint": "its endpoint",
    "key": "object keys: a template, or package.module:function of your remote key generator",
    "parser": "your message parser, package.module:function",
    "file_name": "your file name generator, package.module:function",
}
_NONE = "none"
_OPTIONAL = ("region", "endpoint", "parser", "file_name")
_NOT_A_NAME = re.compile(r"[^a-z0-9_]+")

_HEAD = """\
# Written by `fuploader migrate`. Run it again to take over what FUploader left in storage_root and
# in Redis; with --dry-run it only shows the plan. Until then the pipeline does not start.
# docs/migrating-from-fuploader.md says where to find each setting of FUploader.

"""


@dataclass(frozen=True)
class Question:
    """A setting that no environment variable gives."""

    setting: str
    text: str
    default: str

    @property
    def option(self) -> str:
        return f"--{self.setting.replace('_', '-')}"


@dataclass(frozen=True)
class Answers:
    """What is known so far. An optional setting that is not wanted is `none`."""

    values: Mapping[str, str]
    given: frozenset[str]
    """Settings that the options gave: they are not asked for."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], given: Mapping[str, str]) -> Answers:
        """Start with what the options gave; the rest has defaults or is asked for."""
        set_up = [
            store for store, names in _STORES.items() if all(map(environment.get, names.values()))
        ]
        defaults = {"key": DEFAULT_KEY, "provider": set_up[0] if len(set_up) == 1 else ""}
        defaults |= dict.fromkeys(_OPTIONAL, _NONE)
        return cls({**defaults, **given}, frozenset(given))

    def questions(self) -> list[Question]:
        """What was not given."""
        return [
            Question(setting, text, self.values.get(setting, ""))
            for setting, text in _TEXTS.items()
            if setting not in self.given
        ]

    def with_answer(self, setting: str, answer: str) -> Answers:
        return replace(self, values={**self.values, setting: answer.strip()})

    def secrets(self) -> list[str]:
        """Environment variables that the configuration names."""
        return ["RABBITMQ_URL", "REDIS_URL", *_STORES[self._provider()].values()]

    def _provider(self) -> str:
        provider = self.values["provider"].lower()
        if provider not in _STORES:
            raise ConfigError(
                f"there is no object store {provider!r}", hint=f"one of {', '.join(_STORES)}"
            )
        return provider

    def configuration(self) -> dict[str, Any]:
        """The content of the file."""
        values, provider = self.values, self._provider()
        task = values["name"]
        name = _NOT_A_NAME.sub("_", task.lower()).strip("_")
        name = name if name[:1].isalpha() else f"task_{name}".rstrip("_")
        store: dict[str, Any] = {"kind": provider, "bucket": values["bucket"]}
        if values["region"] != _NONE:
            store["region"] = values["region"]
        if (endpoint := values["endpoint"]) != _NONE:
            if provider == "s3" and "://" not in endpoint:  # FUploader takes one without it
                endpoint = f"https://{endpoint}"
            store[_ENDPOINTS[provider]] = endpoint
        store |= {setting: {"env": name} for setting, name in _STORES[provider].items()}
        pipeline: dict[str, Any] = {
            "source": {
                "kind": "rabbitmq",
                "url": {"env": "RABBITMQ_URL"},
                "queue": values["queue"],
            },
            "state": {"kind": "redis", "url": {"env": "REDIS_URL"}},
            "store": store,
            "key": values["key"],
        }
        for strategy in ("parser", "file_name"):
            if values[strategy] != _NONE:
                pipeline[strategy] = values[strategy]
        if name != task:
            pipeline["takeover"] = {"task_name": task}
        return {"storage_root": values["storage_root"], "pipelines": {name: pipeline}}


def write_configuration(path: Path, answers: Answers) -> None:
    """Write the file. Never replaces one that exists."""
    text = _HEAD + yaml.safe_dump(answers.configuration(), sort_keys=False, allow_unicode=True)
    if path.parent.is_dir() and create_durably(path, text.encode()):
        return
    raise ConfigError(
        f"{path} cannot be written: the file exists already, or its folder is missing",
        hint="name another file with --config",
    )
