"""S3: the settings of a bucket of Amazon S3 or of a compatible service.

The API itself is in `s3_service`, which needs boto3 and is imported only when a store is opened.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from fuploader_dagster.errors import ConfigError
from fuploader_dagster.resources.object_stores.cloud import ENCRYPTION, CloudSettings
from fuploader_dagster.resources.object_stores.service import Service
from fuploader_dagster.resources.object_stores.settings import needing

COLD_CLASSES = frozenset({"GLACIER", "DEEP_ARCHIVE"})
READABLE = frozenset({"encryption default", "encryption AES256"})
"""With these the service states a digest, and nothing has to be read back."""


class S3Settings(CloudSettings):
    """A bucket of Amazon S3 or of a compatible service.

    Without keys, boto3's own chain is used: environment, shared profile, container, instance.
    """

    SECRETS: ClassVar[frozenset[str]] = frozenset(
        {"secret_access_key", "session_token", "customer_key"}
    )
    ADDRESSES: ClassVar[frozenset[str]] = frozenset({"endpoint_url", "proxy_url"})

    region: str | None = None
    """Region of the bucket, such as eu-central-1. By default, boto3 looks it up."""
    endpoint_url: str | None = None
    """Address of a compatible service."""
    access_key_id: str | None = None
    """Access key. Needs `secret_access_key`."""
    secret_access_key: str | None = Field(default=None, repr=False)
    """Secret of the access key."""
    session_token: str | None = Field(default=None, repr=False)
    """Session token of temporary credentials."""
    profile: str | None = None
    """Name of a profile in ~/.aws."""
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    """Where requests name the bucket: in the path or in the host name (virtual)."""
    storage_class: str | None = None
    """Storage class of new objects, such as STANDARD_IA or GLACIER_IR."""
    encryption: Literal["default", "AES256", "aws:kms", "aws:kms:dsse"] = Field(
        default="default", description=ENCRYPTION
    )
    customer_key: str | None = Field(default=None, repr=False)
    """Your own encryption key (SSE-C), 32 bytes in base64. Without it, the archives are
    lost."""

    @model_validator(mode="after")
    def _can_be_confirmed(self) -> Self:
        self.refuse_unconfirmable()
        return self

    def refuse_unconfirmable(self) -> None:
        """Raise `ConfigError` for settings that could store archives but never confirm them.

        With a KMS key or one of our own an object is confirmed by reading it back, and objects of
        these classes cannot be read.
        """
        by = "customer_key" if self.customer_key is not None else f"encryption {self.encryption}"
        if self.storage_class in COLD_CLASSES and by not in READABLE:
            raise ConfigError(
                f"S3.storage_class {self.storage_class} cannot be used with {by}: such objects are "
                "confirmed by reading them back, and this class cannot be read",
                hint="use storage_class GLACIER_IR, or encryption AES256, or let a lifecycle rule "
                "move the archives later",
            )

    def service(self) -> Service:
        with needing("boto3", extra="s3"):
            from fuploader_dagster.resources.object_stores.s3_service import (  # noqa: PLC0415
                S3Service,
            )
        self.refuse_unconfirmable()  # again: the storage class may have come from a variable
        return S3Service(self)

    def describe(self) -> str:
        where = f" at {self.shown('endpoint_url')}" if self.endpoint_url is not None else ""
        return f"s3://{self.shown('bucket')}/{self.shown('prefix')}{where}"
