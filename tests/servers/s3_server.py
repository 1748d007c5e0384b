"""A plain boto3 client of a test server, to prepare buckets and to look behind the store's back."""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any

import boto3
from botocore.config import Config


class S3Server:
    """Has `endpoint`, `access_key` and `secret_key`."""

    region = "us-east-1"
    access_key: str
    secret_key: str
    endpoint: str

    def client(self) -> Any:
        """boto3 as most people set it up for a compatible server."""
        return self._client

    def fresh_bucket(self) -> str:
        """A new, empty bucket."""
        name = "bucket-" + os.urandom(6).hex()
        self._client.create_bucket(Bucket=name)
        return name

    def settings(self, **more: Any) -> dict[str, Any]:
        """Of an `S3` on a fresh bucket. The variable TEST_SECRET has to hold the secret key."""
        return {
            "bucket": self.fresh_bucket(),
            "endpoint_url": self.endpoint,
            "region": self.region,
            "addressing_style": "path",
            "access_key_id": self.access_key,
            "secret_access_key": {"env": "TEST_SECRET"},
            **more,
        }

    @cached_property
    def _client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": "path"},
            ),
        )
