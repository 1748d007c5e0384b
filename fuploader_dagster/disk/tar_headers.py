"""Writes our own tar headers: by hand, because draining writes one per message.

`archives/tar_entries.py` reads the headers of any tool.

What must always hold: the same name, size and message headers give the same bytes, on any machine,
for ever. A segment and the archive packed from it are compared byte by byte, so owner, group, mode
and time are fixed (root, 0644, the epoch), and a change here is a new format version.

A member is `member_header(name, size) + payload + padding(size)`; a stream ends with `END`. The
header is one ustar block of 512 bytes. A name that is not ASCII or longer than 100 bytes, a payload
of 8 GiB or more, and message headers (`header_text`) do not fit in it. Then a pax extended header
comes first (POSIX.1-2001, "pax Interchange Format"); readers without pax see the name shortened,
with `?` for each character that is not ASCII. The message headers are the record `comment`, which
all programs know and ignore. Offsets and fields: docs/formats.md.
"""

from __future__ import annotations

from functools import lru_cache
from zlib import adler32

from fuploader_dagster.errors import BadMessage

BLOCK = 512
END = bytes(2 * BLOCK)
"""The end of a tar stream."""

_NAME_LIMIT = 100
_SIZE_LIMIT = 8**11  # eleven octal digits: 8 GiB
_PAX_NAME = b"././@PaxHeader"  # the extended header's name, for old readers

_MODE_OWNER_GROUP = b"0000644\0" + b"0000000\0" + b"0000000\0"
_MTIME = b"00000000000\0"
_LINK_MAGIC_OWNER = bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2 + bytes(155 + 12)
_FILE_TAIL = b"0" + _LINK_MAGIC_OWNER
_PAX_TAIL = b"x" + _LINK_MAGIC_OWNER

_PADDINGS = tuple(bytes(-n % BLOCK) for n in range(BLOCK))


def padding(size: int) -> bytes:
    """The zero bytes that fill a payload of `size` bytes to a multiple of 512."""
    return _PADDINGS[size & (BLOCK - 1)]


def member_header(name: str, size: int, headers: str = "") -> bytes:
    """The header of a regular file: 512 bytes, or a multiple of it where pax is needed.

    Does not check the name: separators and NUL were refused where it came from. Raises `BadMessage`
    for a name or message headers that cannot be UTF-8 (lone surrogates).
    """
    if not headers and name.isascii() and len(name) <= _NAME_LIMIT and size < _SIZE_LIMIT:
        return _ustar(name.encode(), size, _FILE_TAIL)
    return _with_pax(name, size, headers)


def header_bytes(name: str, size: int, headers: str = "") -> int:
    """`len(member_header(name, size, headers))`, cheaper."""
    if not headers and name.isascii() and len(name) <= _NAME_LIMIT and size < _SIZE_LIMIT:
        return BLOCK
    return len(_with_pax(name, size, headers))


def member_bytes(name: str, size: int, headers: str = "") -> int:
    """Length of a whole member in the stream: header, payload and padding."""
    return header_bytes(name, size, headers) + (size + BLOCK - 1) // BLOCK * BLOCK


def _ustar(name: bytes, size: int, tail: bytes) -> bytes:
    field = name.ljust(_NAME_LIMIT, b"\0")
    middle, fixed_sum = _middle(size, tail)
    # The low half of adler32 is 1 plus the sum of all bytes modulo 65521, which 100 bytes never
    # reach: the only call in the standard library that adds up bytes at the speed of C.
    return b"".join((field, middle, _checksum(fixed_sum + (adler32(field) & 0xFFFF)), tail))


@lru_cache(maxsize=8192)
def _middle(size: int, tail: bytes) -> tuple[bytes, int]:
    """The fields between name and checksum, and the checksum of everything but the name."""
    middle = _MODE_OWNER_GROUP + b"%011o\0" % size + _MTIME
    checksum_as_spaces = 8 * ord(" ")
    return middle, sum(middle) + checksum_as_spaces + sum(tail) - 1


@lru_cache(maxsize=32768)  # more than there are different sums
def _checksum(total: int) -> bytes:
    return b"%06o\0 " % total


def _with_pax(name: str, size: int, headers: str) -> bytes:
    try:
        raw = name.encode()
    except UnicodeEncodeError as e:
        raise BadMessage(
            f"file name {name!r} cannot be written as UTF-8: {e.reason}",
            hint="the file name generator must return valid Unicode text",
        ) from e
    fits = len(raw) <= _NAME_LIMIT and name.isascii()
    long_name = b"" if fits else _pax_record(b"path", raw)
    short = raw if fits else name.encode("ascii", "replace")[:_NAME_LIMIT]
    large = size if size >= _SIZE_LIMIT else 0
    return _pax_member(long_name, large, headers) + _ustar(short, 0 if large else size, _FILE_TAIL)


@lru_cache(maxsize=128)  # a content type is that of thousands of members
def _pax_member(long_name: bytes, large_size: int, headers: str) -> bytes:
    try:
        comment = headers.encode()
    except UnicodeEncodeError as e:
        raise BadMessage(
            f"message headers {headers!r} cannot be written as UTF-8: {e.reason}"
        ) from e
    records = long_name
    if large_size:
        records += _pax_record(b"size", b"%d" % large_size)
    if comment:
        records += _pax_record(b"comment", comment)
    return _ustar(_PAX_NAME, len(records), _PAX_TAIL) + records + padding(len(records))


def _pax_record(key: bytes, value: bytes) -> bytes:
    """`<length> <key>=<value>\\n`, where the length counts its own digits too."""
    rest = len(key) + len(value) + 3  # space, equals sign, newline
    length = rest + len(str(rest))
    if rest + len(str(length)) != length:
        length += 1
    return b"%d %b=%b\n" % (length, key, value)
