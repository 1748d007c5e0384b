"""OSS: the settings of a bucket of Alibaba Cloud's Object Storage Service.

The API itself is in `oss_service`, which needs oss2 and is imported only when a store is opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from fuploader_dagster.contracts.diagnosis import Diagnosis
from fuploader_dagster.resources.object_stores import cloud, crc64
from fuploader_dagster.resources.object_stores.service import Service
from fuploader_dagster.resources.object_stores.settings import needing


class OSSSettings(cloud.CloudSettings):
    """A bucket of Alibaba OSS.

    Without keys, OSS_ACCESS_KEY_ID, OSS_ACCESS_KEY_SECRET and OSS_SESSION_TOKEN of the
    environment are used, or the machine's role if `instance_role_url` is set.
    """

    SECRETS: ClassVar[frozenset[str]] = frozenset({"access_key_secret", "security_token"})
    ADDRESSES: ClassVar[frozenset[str]] = frozenset({"endpoint", "proxy_url", "instance_role_url"})

    endpoint: str
    """Address of the service, such as https://oss-cn-hangzhou.aliyuncs.com."""
    region: str | None = None
    """Region, such as cn-hangzhou: requests are signed by V4. Without it, by V1."""
    addressing_style: Literal["virtual", "path", "cname"] = "virtual"
    """Where requests name the bucket: in the host name (virtual), in the path, or by the
    endpoint itself, which is a host name of the bucket's own (cname)."""
    access_key_id: str | None = None
    """Access key. Needs `access_key_secret`."""
    access_key_secret: str | None = Field(default=None, repr=False)
    """Secret of the access key."""
    security_token: str | None = Field(default=None, repr=False)
    """Session token of temporary credentials (STS)."""
    instance_role_url: str | None = Field(default=None, repr=False)
    """Address of the credentials of this machine's role:
    http://100.100.100.200/latest/meta-data/ram/.../<role>"""
    storage_class: str | None = None
    """Storage class of new objects, such as IA or Archive."""
    encryption: Literal["default", "AES256", "KMS", "SM4"] = Field(
        default="default", description=cloud.ENCRYPTION
    )
    part_size_bytes: int = Field(
        default=16 * cloud.MIB, ge=100 << 10, le=2048 * cloud.MIB, description=cloud.PART_SIZE
    )

    def service(self) -> Service:
        with needing("oss2", extra="oss"):
            from fuploader_dagster.resources.object_stores.oss_service import (  # noqa: PLC0415
                OssService,
            )
        return OssService(self)

    def examine(self) -> Iterator[Diagnosis]:
        yield from crc64.examine()

    def describe(self) -> str:
        where = self.shown("endpoint")
        return f"oss://{self.shown('bucket')}/{self.shown('prefix')} at {where}"
