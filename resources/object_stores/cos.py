"""COS: the settings of a bucket of Tencent Cloud Object Storage.

The API itself is in `cos_service`, which needs cos-python-sdk-v5 and is imported only when a
store is opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.resources.object_stores import cloud, crc64
from fuploader_dagster.resources.object_stores.service import Service
from fuploader_dagster.resources.object_stores.settings import needing


class COSSettings(cloud.CloudSettings):
    """A bucket of Tencent COS.

    Without keys, COS_SECRET_ID, COS_SECRET_KEY and COS_TOKEN of the environment are used, or the
    machine's role if `instance_role_url` is set.
    """

    SECRETS: ClassVar[frozenset[str]] = frozenset({"secret_key", "token"})
    ADDRESSES: ClassVar[frozenset[str]] = frozenset(
        {"endpoint", "address", "proxy_url", "instance_role_url"}
    )

    bucket: str
    """Name of the bucket with the account's number: name-1250000000."""
    region: str | None = None
    """Region of the bucket, such as ap-guangzhou."""
    endpoint: str | None = None
    """Parent domain of the bucket's host name, in place of the region."""
    address: str | None = None
    """host:port to connect to, in place of the endpoint's."""
    scheme: Literal["https", "http"] = "https"
    """`http` is for private endpoints."""
    secret_id: str | None = None
    """Id of the key. Needs `secret_key`."""
    secret_key: str | None = Field(default=None, repr=False)
    """Secret of the key."""
    token: str | None = Field(default=None, repr=False)
    """Session token of temporary credentials."""
    instance_role_url: str | None = Field(default=None, repr=False)
    """Address of the credentials of this machine's role:
    http://metadata.tencentyun.com/latest/meta-data/cam/.../<role>"""
    storage_class: str | None = None
    """Storage class of new objects, such as STANDARD_IA or ARCHIVE."""
    encryption: Literal["default", "AES256", "cos/kms"] = Field(
        default="default", description=cloud.ENCRYPTION
    )
    part_size_bytes: int = Field(
        default=16 * cloud.MIB, ge=cloud.MIB, le=2048 * cloud.MIB, description=cloud.PART_SIZE
    )

    def service(self) -> Service:
        with needing("cos-python-sdk-v5", extra="cos"):
            from fuploader_dagster.resources.object_stores.cos_service import (  # noqa: PLC0415
                CosService,
            )
        return CosService(self)

    def examine(self) -> Iterator[Diagnosis]:
        yield from crc64.examine()

    def describe(self) -> str:
        place = "region" if self.endpoint is None else "endpoint"
        return f"cos://{self.shown('bucket')}/{self.shown('prefix')} at {self.shown(place)}"
