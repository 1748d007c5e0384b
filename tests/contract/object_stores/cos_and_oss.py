"""What COS and OSS do alike: the names of settings and headers differ, and are attributes here."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from fuploader_dagster.contracts.object_store import counted_requests
from fuploader_dagster.errors import DigestMismatch, StoreRefused, StoreUnavailable
from fuploader_dagster.testing.object_store_contract import (
    MIB,
    OpenStore,
    PartsContract,
    make_archive,
)
from tests.servers.fake_bucket import FakeBucket
from tests.servers.faulty_proxy import FaultyProxy

KEY = "archives/of-node-1/k"


class KeysByDefault(PartsContract):
    """The bucket encrypts by default: no ETag is an md5, and the CRC-64 proves what is there."""

    part_bytes = MIB
    encryption = ""

    @pytest.fixture(autouse=True)
    def encrypts(self, fake: FakeBucket) -> None:
        fake.encrypts_with = self.encryption


class CosAndOss:
    """Needs the fixtures `open_store` and `fake`."""

    scheme = ""
    key_setting = ""
    secret_setting = ""
    token_setting = ""
    storage_class = ""
    other_bucket = ""

    @pytest.mark.parametrize("what", ["key", "secret", "bucket"])
    def test_a_refusal_names_address_and_what_to_check_but_no_secret(
        self,
        open_store: OpenStore,
        fake: FakeBucket,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        what: str,
    ) -> None:
        monkeypatch.setenv("TEST_WRONG_SECRET", "wrong-" + fake.secret)
        wrong, code = {
            "key": ({self.key_setting: "nobody"}, "InvalidAccessKeyId"),
            "secret": (
                {self.secret_setting: dg.EnvVar("TEST_WRONG_SECRET")},
                "SignatureDoesNotMatch",
            ),
            "bucket": ({"bucket": self.other_bucket}, "NoSuchBucket"),
        }[what]
        store = open_store(**wrong)
        with pytest.raises(StoreRefused, match=code) as caught:
            store.check() if what == "bucket" else list(store.list())
        assert f"{self.scheme}://" in str(caught.value)
        assert caught.value.hint
        with pytest.raises(StoreRefused, match=code) as caught:  # its first request is a HEAD
            store.put("k", make_archive(tmp_path, 10))
        assert fake.secret not in str(caught.value)

    @pytest.mark.parametrize("size", [1_000, 3 * MIB])
    def test_each_request_of_an_upload_counts(
        self, open_store: OpenStore, fake: FakeBucket, tmp_path: Path, size: int
    ) -> None:
        store = open_store()
        with counted_requests() as requests:
            store.put("k", make_archive(tmp_path, size))
        assert requests.number == fake.counts.total() > 1

    def test_temporary_credentials_send_their_token(
        self,
        open_store: OpenStore,
        fake: FakeBucket,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        fake.token = "token-of-sts"
        with pytest.raises(StoreRefused):
            open_store().put("k", make_archive(tmp_path, 10))
        monkeypatch.setenv("TEST_TOKEN", fake.token)
        token = {self.token_setting: dg.EnvVar("TEST_TOKEN")}
        open_store(**token).put("k", make_archive(tmp_path, 10))

    def test_storage_class_encryption_and_tags_are_asked_for(
        self, open_store: OpenStore, fake: FakeBucket, tmp_path: Path
    ) -> None:
        store = open_store(
            storage_class=self.storage_class, encryption="AES256", tags={"team": "a b"}
        )
        store.put("k", make_archive(tmp_path, 10, pipeline="aweme"))
        headers = fake.files[KEY].headers
        assert headers[f"x-{self.scheme}-storage-class"] == self.storage_class
        assert headers[f"x-{self.scheme}-server-side-encryption"] == "AES256"
        assert headers[f"x-{self.scheme}-meta-pipeline"] == "aweme"
        assert headers[f"x-{self.scheme}-tagging"] == "team=a%20b"

    def test_an_error_that_comes_with_status_200_is_an_error(
        self, open_store: OpenStore, fake: FakeBucket, tmp_path: Path
    ) -> None:
        archive = make_archive(tmp_path, 2 * MIB + 5)
        fake.fail_late_once = True
        with pytest.raises(StoreUnavailable):
            open_store().put("k", archive)
        assert not fake.fail_late_once
        assert not open_store().put("k", archive).already_there
        assert fake.counts["part"] == 2

    def test_an_object_that_claims_our_digest_and_holds_other_bytes_is_a_mismatch(
        self, open_store: OpenStore, fake: FakeBucket, tmp_path: Path
    ) -> None:
        archive = make_archive(tmp_path, 1_000)
        open_store().put("k", archive)
        fake.files[KEY].content = b"x" * 1_000
        with pytest.raises(DigestMismatch, match="crc64ecma"):
            open_store().put("k", archive)

    def test_requests_go_through_the_proxy_that_is_set(
        self, open_store: OpenStore, fake: FakeBucket, tmp_path: Path
    ) -> None:
        proxy = FaultyProxy(fake.port)
        proxy.start()
        open_store(proxy_url=proxy.endpoint).put("k", make_archive(tmp_path, 10))
        assert proxy.forwarded["put"] == fake.counts["put"] == 1
        proxy.stop()

    def test_without_keys_those_of_the_environment_are_used(
        self,
        open_store: OpenStore,
        fake: FakeBucket,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        for setting, value in ((self.key_setting, fake.key_id), (self.secret_setting, fake.secret)):
            monkeypatch.setenv(f"{self.scheme}_{setting}".upper(), value)
        store = open_store(**{self.key_setting: None, self.secret_setting: None})
        assert not store.put("k", make_archive(tmp_path, 10)).already_there

    @pytest.mark.parametrize("size", [1_000, 2 * MIB + 5])
    def test_what_is_erased_leaves_no_version_and_no_mark(
        self, open_store: OpenStore, fake: FakeBucket, tmp_path: Path, size: int
    ) -> None:
        fake.versioned = True
        store, kept = open_store(), make_archive(tmp_path, 10)
        store.put("kept", kept)
        store.put("k", make_archive(tmp_path, size))
        store.erase("k")
        store.erase("k")
        assert list(fake.versions.values()) == ["archives/of-node-1/kept"]
        store.put("k", kept)
        store.delete("k")
        assert len(fake.versions) == 3  # the object is still there, behind a mark
