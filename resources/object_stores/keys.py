"""Object keys: which are allowed, and how the store's prefix is added.

A key is the path of an object below the store's prefix: relative, `/`-separated, UTF-8, without
empty, `.` or `..` components. With its prefix it has at most 1,024 bytes, the limit of all three
clouds. A key that a user's function makes must not be able to leave the prefix.
"""

from __future__ import annotations

from fuploader_dagster.errors import StoreRefused

MAX_KEY_BYTES = 1024


def full_key(prefix: str, key: str) -> str:
    """The key as the service sees it. Raises `StoreRefused`, saying why, for a bad one."""
    full = f"{prefix.strip('/')}/{key}" if prefix.strip("/") else key
    reason = _what_is_wrong(key) or _too_long(full)
    if reason:
        raise StoreRefused(
            f"{key!r} cannot be an object key: {reason}",
            hint="the pipeline's `key` made it; keys are relative paths such as a/2026/x.tar",
        )
    return full


def full_prefix(prefix: str, listed: str) -> str:
    """The prefix of a listing as the service sees it."""
    own = prefix.strip("/")
    return f"{own}/{listed}" if own else listed


def own_key(prefix: str, full: str) -> str:
    """The reverse of `full_key`."""
    own = prefix.strip("/")
    return full[len(own) + 1 :] if own else full


def _what_is_wrong(key: str) -> str:
    if not key:
        return "it is empty"
    if any(component in ("", ".", "..") for component in key.split("/")):
        return "it is absolute or has an empty, '.' or '..' component"
    if any(ord(character) < 32 or ord(character) == 127 for character in key):
        return "it has a control character"
    return ""


def _too_long(full: str) -> str:
    try:
        size = len(full.encode())
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    if size > MAX_KEY_BYTES:
        return f"it has {size} bytes, at most {MAX_KEY_BYTES} are allowed"
    return ""
