"""Settings of object stores: secrets, variables, unknown fields; in Dagster and outside of it."""

from __future__ import annotations

import importlib
import json
import logging
import sys
import traceback
from pathlib import Path
from typing import Any

import dagster as dg
import pydantic
import pytest
from botocore.loaders import JSONFileLoader

from fuploader_dagster.contracts.object_store import ObjectStore, OpensObjectStore
from fuploader_dagster.errors import ConfigError, FuploaderError
from fuploader_dagster.resources.object_stores import COS, OSS, S3, Local, s3_client
from fuploader_dagster.resources.object_stores.resource import ObjectStoreResource
from fuploader_dagster.testing.object_store_contract import make_archive

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


LOGIN = f"http://bob:{SECRET}@127.0.0.1:1"
STORES: dict[str, tuple[Any, dict[str, Any]]] = {
    "S3.proxy_url": (S3, {"bucket": "b", "region": "eu-central-1"}),
    "S3.endpoint_url": (S3, {"bucket": "b", "region": "eu-central-1"}),
    "COS.proxy_url": (COS, {"bucket": "b-125", "region": "ap-x", "scheme": "http"}),
    "COS.endpoint": (COS, {"bucket": "b-125", "scheme": "http"}),
    "COS.address": (COS, {"bucket": "b-125", "region": "ap-x", "scheme": "http"}),
    "COS.instance_role_url": (COS, {"bucket": "b-125", "region": "ap-x", "scheme": "http"}),
    "OSS.proxy_url": (OSS, {"bucket": "bbb", "endpoint": "http://oss-cn-x.aliyuncs.com"}),
    "OSS.endpoint": (OSS, {"bucket": "bbb"}),
    "OSS.instance_role_url": (OSS, {"bucket": "bbb", "endpoint": "http://oss.example.com"}),
}


def test_every_address_of_every_store_is_in_the_table() -> None:
    named = {f"{kind.kind()}.{name}" for kind in (S3, COS, OSS) for name in kind.ADDRESSES}
    assert named == set(STORES)
    addresses = {
        f"{kind.kind()}.{name}"
        for kind in (S3, COS, OSS)
        for name in kind.model_fields
        if name.endswith("_url") or name in ("endpoint", "address")
    }
    assert addresses == named


@pytest.mark.parametrize("field", sorted(STORES))
@pytest.mark.parametrize(
    "literal",
    [LOGIN, f"bob:{SECRET}@host:1", f"//{SECRET}@host", f"http://host/role?token={SECRET}"],
)
def test_an_address_with_a_login_is_refused_literally_without_quoting_it(
    field: str, literal: str
) -> None:
    kind, values = STORES[field]
    with pytest.raises(ConfigError, match=field) as caught:
        kind(**{**values, field.partition(".")[2]: literal})
    assert SECRET not in str(caught.value)
    assert "{env: NAME}" in caught.value.hint


@pytest.mark.parametrize("field", sorted(STORES))
def test_an_address_without_a_login_may_be_given_literally(field: str) -> None:
    kind, values = STORES[field]
    for plain in ("http://127.0.0.1:3128", "127.0.0.1:3128", "https://host/a@b"):
        kind(**{**values, field.partition(".")[2]: plain})


@pytest.mark.parametrize("field", sorted(STORES))
def test_a_login_from_a_variable_is_nowhere_to_be_seen(
    field: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kind, values = STORES[field]
    name = field.partition(".")[2]
    bare = field in ("COS.address", "COS.endpoint")  # host and port, without a scheme
    monkeypatch.setenv("TEST_ADDRESS", LOGIN.removeprefix("http://") if bare else LOGIN)
    monkeypatch.setenv("TEST_SECRET", "another-secret")
    keys = {
        S3: {"access_key_id": "id", "secret_access_key": {"env": "TEST_SECRET"}},
        COS: {"secret_id": "id", "secret_key": {"env": "TEST_SECRET"}},
        OSS: {"access_key_id": "id", "access_key_secret": {"env": "TEST_SECRET"}},
    }[kind]
    with_keys = {} if "role" in name else keys
    store = kind(
        **{**values, **with_keys, name: {"env": "TEST_ADDRESS"}, "retry_budget_seconds": 0}
    )
    shown = [repr(store), store.describe(), repr(store.resolved()), store.resolved().describe()]
    shown.append(
        json.dumps(store.get_resource_definition().config_schema.default_value, default=str)
    )
    caplog.set_level(logging.INFO)
    with pytest.raises(FuploaderError) as caught:
        store.open().put("k", make_archive(tmp_path, 10))
    shown += traceback.format_exception(caught.value)
    shown.append(caplog.text)
    assert SECRET not in "".join(shown)
