"""Settings of object stores: secrets, variables, unknown fields; in Dagster and outside of it."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pydantic
import pytest
from botocore.loaders import JSONFileLoader

from fuploader_dagster.errors import ConfigError
from fuploader_dagster.resources.object_stores import S3, Local, s3_client
from fuploader_dagster.resources.object_stores.resource import ObjectStoreResource
from fuploader_dagster.storage import ObjectStore, OpensObjectStore

SECRET = "very-secret-value"


@pytest.fixture
def with_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_SECRET", SECRET)


def settings(**more: Any) -> S3:
    values = {
        "bucket": "b",
        "region": "eu-central-1",
        "access_key_id": "AKIA",
        "secret_access_key": {"env": "TEST_SECRET"},
    }
    return S3(**{**values, **more})


@pytest.mark.parametrize("name", sorted(S3.SECRETS))
def test_a_literal_secret_is_refused_by_its_name_without_its_value(name: str) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        settings(**{name: "literal-" + SECRET})
    assert SECRET not in str(caught.value)
    assert "env" in caught.value.hint


def test_an_unknown_field_is_refused_without_quoting_what_it_holds(with_secret: None) -> None:
    with pytest.raises(pydantic.ValidationError, match="secret_key") as caught:
        settings(secret_key=SECRET)
    assert SECRET not in str(caught.value)


def test_a_missing_variable_is_named_when_the_store_is_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TEST_SECRET", raising=False)
    with pytest.raises(ConfigError, match="TEST_SECRET"):
        settings().open()


def test_variables_are_resolved_when_the_store_is_opened_outside_of_dagster(
    monkeypatch: pytest.MonkeyPatch, with_secret: None
) -> None:
    monkeypatch.setenv("TEST_BUCKET", "bucket-of-the-environment")
    store = settings(bucket={"env": "TEST_BUCKET"}).open()
    assert store.address("k") == "s3://bucket-of-the-environment/k"


def test_neither_repr_nor_description_shows_a_secret(with_secret: None) -> None:
    for each in (settings(), settings().resolved()):
        assert SECRET not in repr(each)
        assert SECRET not in str(each)
        assert SECRET not in each.describe()
    assert settings().describe() == "s3://b/"
    assert settings(bucket={"env": "B"}, prefix="p").describe() == "s3://${B}/p"


def test_pydantic_builds_settings_from_yaml_values_with_variables(with_secret: None) -> None:
    adapter = pydantic.TypeAdapter(S3)
    built = adapter.validate_python({"bucket": "b", "secret_access_key": {"env": "TEST_SECRET"}})
    assert isinstance(built.secret_access_key, dg.EnvVar)


def test_dagster_resolves_variables_and_its_run_config_shows_only_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_FOLDER", str(tmp_path / "store"))
    addresses = []

    @dg.asset
    def archive(store: dg.ResourceParam[OpensObjectStore]) -> None:
        opened = store.open()
        opened.check()
        addresses.append(opened.address("k"))

    local = Local(path=dg.EnvVar("TEST_FOLDER"))
    result = dg.materialize([archive], resources={"store": local})
    assert result.success
    assert addresses == [(tmp_path / "store" / "k").as_uri()]


def test_dagster_resolves_secrets_without_taking_them_for_literals(with_secret: None) -> None:
    opened = []

    @dg.asset
    def archive(store: dg.ResourceParam[OpensObjectStore]) -> None:
        opened.append(store.open())

    resource = settings()
    assert dg.materialize([archive], resources={"store": resource}).success
    assert len(opened) == 1
    shown = json.dumps(resource.get_resource_definition().config_schema.default_value, default=str)
    assert SECRET not in shown
    assert "TEST_SECRET" in shown


def test_a_host_project_adds_a_backend_by_subclassing(tmp_path: Path) -> None:
    class OurShare(ObjectStoreResource):
        share: str

        def connect(self) -> ObjectStore:
            return Local(path=str(tmp_path / self.share)).connect()

        def describe(self) -> str:
            return f"share {self.share}"

    store = OurShare(share="s").open()
    store.check()
    assert isinstance(OurShare(share="s"), OpensObjectStore)


@pytest.mark.parametrize(
    ("library", "name", "extra"),
    [("boto3", "S3", "s3"), ("qcloud_cos", "COS", "cos"), ("oss2", "OSS", "oss")],
)
def test_a_missing_client_library_gives_the_command_to_install_it(
    library: str,
    name: str,
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
    with_secret: None,
) -> None:
    package = "fuploader_dagster.resources.object_stores"
    for part in ("service", "client"):
        monkeypatch.delitem(sys.modules, f"{package}.{extra}_{part}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    kind = getattr(importlib.import_module(package), name)
    with pytest.raises(ConfigError) as caught:
        kind(bucket="b", **({"endpoint": "https://e"} if name == "OSS" else {})).open()
    assert f"pip install 'fuploader-dagster[{extra}]'" in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [{"part_size_bytes": 1_000}, {"concurrency": 0}, {"addressing_style": "vhost"}]
)
def test_impossible_values_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError, match=next(iter(wrong))):
        settings(**wrong)


def test_an_unknown_profile_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="no-such-profile"):
        S3(bucket="b", profile="no-such-profile").open()


def test_a_customer_key_of_the_wrong_length_is_a_configuration_error(with_secret: None) -> None:
    with pytest.raises(ConfigError, match="customer_key") as caught:
        settings(customer_key={"env": "TEST_SECRET"}).open()
    assert SECRET not in str(caught.value)


def test_what_describes_s3_is_read_once_for_all_stores(
    monkeypatch: pytest.MonkeyPatch, with_secret: None
) -> None:
    read = []
    load_file = JSONFileLoader.load_file

    def counted(loader: JSONFileLoader, path: str) -> Any:
        read.append(path)
        return load_file(loader, path)

    monkeypatch.setattr(JSONFileLoader, "load_file", counted)
    s3_client._models.cache_clear()
    s3_client.read_models()
    assert any("s3" in Path(path).parts for path in read)
    read.clear()
    settings().open()
    settings(region="us-east-1").open()
    assert read == []
