"""Headers of HTTP: which ones settings may send, and which content types can be one."""

from __future__ import annotations

import re
from functools import lru_cache

from pydantic import SecretStr

from fuploader_dagster.settings.secret import place_of_unset

TOKEN = "!#$&'*+-.^_`|~"  # noqa: S105 - what RFC 9110 calls the characters of a header's name
_NAME = re.compile(rf"[{re.escape(TOKEN)}%0-9A-Za-z]+")
_LONGEST_CONTENT_TYPE = 200


def sendable(name: str, secret: SecretStr, *, set_by: str) -> SecretStr:
    """The value of a header, as it is sent. Raises `ValueError` if that cannot be.

    `set_by`: who sets this header himself; empty if nobody does.
    """
    if not _NAME.fullmatch(name):
        raise ValueError("a header has a name that HTTP does not allow")
    if set_by:
        raise ValueError(f"the header {name} is set by {set_by} itself")
    if place_of_unset(secret):
        return secret
    value = secret.get_secret_value().strip()  # files of secrets end with a line break
    if not (value.isascii() and value.replace("\t", " ").isprintable()):
        raise ValueError(f"the value of the header {name} is not printable ASCII")
    return SecretStr(value)


@lru_cache(256)
def usable_content_type(value: str) -> str:
    """A content type that came from outside, if it can be one; else nothing."""
    value = value.strip()
    usable = "/" in value and value.isascii() and value.isprintable()
    return value if usable and len(value) <= _LONGEST_CONTENT_TYPE else ""
