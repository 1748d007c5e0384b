"""S3: the settings of a bucket of Amazon S3 or of anything that speaks like it.

The API itself is in `s3_service`, which needs boto3 and is imported only when a store is opened.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from fuploader_dagster.resources.object_stores.cloud import CloudSettings
from fuploader_dagster.resources.object_stores.service import Service
from fuploader_dagster.resources.object_stores.settings import needing


class S3Settings(CloudSettings):
    """A bucket of Amazon S3 or of a compatible service.

    Without keys, boto3's own chain is asked: environment, shared profile, container, instance.
    """

    SECRETS: ClassVar[frozenset[str]] = frozenset(
        {"secret_access_key", "session_token", "customer_key"}
    )

    region: str | None = Field(
        default=None, description="Such as eu-central-1; if not given, boto3's own search decides."
    )
    endpoint_url: str | None = Field(default=None, description="For compatible services.")
    access_key_id: str | None = Field(default=None, description="Together with secret_access_key.")
    secret_access_key: str | None = Field(
        default=None, repr=False, description="As an environment variable."
    )
    session_token: str | None = Field(
        default=None, repr=False, description="Of temporary credentials."
    )
    profile: str | None = Field(default=None, description="A profile of ~/.aws.")
    addressing_style: Literal["auto", "path", "virtual"] = Field(
        default="auto", description="Whether the bucket is in the path or in the host name."
    )
    storage_class: str | None = Field(
        default=None, description="Such as STANDARD_IA or GLACIER_IR."
    )
    encryption: Literal["default", "AES256", "aws:kms", "aws:kms:dsse"] = Field(
        default="default",
        description="What the service encrypts objects with; default: as the bucket says.",
    )
    customer_key: str | None = Field(
        default=None, repr=False, description="SSE-C: 32 bytes in base64. Lost key, lost archives."
    )

    def service(self) -> Service:
        with needing("boto3", extra="s3"):
            from fuploader_dagster.resources.object_stores.s3_service import (  # noqa: PLC0415
                S3Service,
            )
        return S3Service(self)

    def describe(self) -> str:
        where = f" at {self.shown('endpoint_url')}" if self.endpoint_url is not None else ""
        return f"s3://{self.shown('bucket')}/{self.shown('prefix')}{where}"
