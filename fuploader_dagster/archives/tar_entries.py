"""Reads the entries of a tar stream of any tool: name, kind, and how many bytes follow.

`disk/tar_headers.py` writes our own headers.

What must always hold: an entry's size is the number of bytes that really follow its header, so one
odd entry never damages the next one; a header that contradicts itself is a `TarError`.

Understands ustar, pax and GNU's long names; of pax comments, those that are message headers. Links
and sparse files (in pax, and in GNU's own format with any number of continuation blocks) are
reported by name, and are not unpacked.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from typing import NamedTuple

from fuploader_dagster.disk.header_text import MOST_BYTES, from_text
from fuploader_dagster.disk.tar_headers import BLOCK, padding

Take = Callable[[int], bytes]
"""Takes exactly this many bytes from the stream."""

_EXTENSION_LIMIT = 2**20
"""For all that extends one header: a name of a megabyte is damage, not a name."""
_SPARSE_CONTINUES = 482
_SPARSE_BLOCK_CONTINUES = 504
_MOST_SPARSE_BLOCKS = 2**20
"""For one file; each has 21 pieces."""


class Entry(NamedTuple):
    """A file, directory, link or anything else in the tar stream."""

    name: str
    size_bytes: int
    """Number of bytes that follow in the stream."""
    kind: str
    """`file`, `directory`, or a description of anything else."""
    headers: str = ""
    """The message headers that are kept with it, if its pax comment is of that form."""


def read_entry(take: Take) -> Entry | None:
    """The next entry, with everything that extends its header; None at tar's end mark.

    Raises `TarError`, and what `take` raises.
    """
    pax: dict[str, bytes] = {}
    long_name: bytes | None = None
    long_link: bytes | None = None
    extended = 0
    while True:
        block = take(BLOCK)
        if not any(block):
            if any(take(BLOCK)):
                raise tarfile.ReadError("a single block of zeros instead of two")
            return None
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        if info.type not in _EXTENSIONS:
            break
        extended += info.size + BLOCK
        if info.size < 0 or extended > _EXTENSION_LIMIT:
            raise tarfile.ReadError(f"extended headers of {extended} bytes")
        data = take(info.size + len(padding(info.size)))[: info.size]
        if info.type == tarfile.GNUTYPE_LONGNAME:
            long_name = data.rstrip(b"\0")
        elif info.type == tarfile.GNUTYPE_LONGLINK:
            long_link = data.rstrip(b"\0")
        elif info.type != tarfile.XGLTYPE:
            pax |= _pax_records(data)
    name = _text(pax.get("GNU.sparse.name", pax.get("path", long_name)), info.name)
    link = _text(pax.get("linkpath", long_link), info.linkname)
    size = _pax_number(pax["size"]) if "size" in pax else info.size
    if size < 0:
        raise tarfile.ReadError("a negative size")
    if info.type == tarfile.GNUTYPE_SPARSE:
        _skip_sparse_map(block, take)
    if info.type in _WITHOUT_CONTENT:
        size = 0
    return Entry(name.rstrip("/"), size, _kind(info, pax, link), _headers(pax))


_EXTENSIONS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_DEVICES = {
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
}
_WITHOUT_CONTENT = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, *_DEVICES)


def _kind(info: tarfile.TarInfo, pax: dict[str, bytes], link: str) -> str:
    if info.type == tarfile.GNUTYPE_SPARSE or any(k.startswith("GNU.sparse") for k in pax):
        return "a sparse file"
    if info.isreg():
        return "file"
    if info.isdir():
        return "directory"
    if info.issym():
        return f"a symbolic link to {link!r}"
    if info.islnk():
        return f"a hard link to {link!r}"
    return _DEVICES.get(info.type, "neither file nor directory")


def _headers(pax: dict[str, bytes]) -> str:
    comment = pax.get("comment", b"")
    if not comment.startswith(b"{") or len(comment) > MOST_BYTES:
        return ""
    text = comment.decode("utf-8", "replace")
    return text if from_text(text) else ""


def _skip_sparse_map(block: bytes, take: Take) -> None:
    """GNU's own format lists the pieces of a sparse file after the fourth in further blocks."""
    continues = block[_SPARSE_CONTINUES]
    blocks = 0
    while continues:
        blocks += 1
        if blocks > _MOST_SPARSE_BLOCKS:
            raise tarfile.ReadError("a sparse file with an impossible number of pieces")
        continues = take(BLOCK)[_SPARSE_BLOCK_CONTINUES]


def _text(raw: bytes | None, otherwise: str) -> str:
    return otherwise if raw is None else raw.decode("utf-8", "surrogateescape")


def _pax_number(value: bytes) -> int:
    if not value.isdigit() or len(value) > 20:
        raise tarfile.ReadError("a pax size that is not a number")
    return int(value)


def _pax_records(data: bytes) -> dict[str, bytes]:
    """Each is `<length> <key>=<value>\\n`."""
    records = {}
    at = 0
    while at < len(data):
        length, _, _ = data[at : at + 21].partition(b" ")
        if not length.isdigit() or not len(length) + 2 < int(length) <= len(data) - at:
            raise tarfile.ReadError("a pax record of impossible length")
        record = data[at : at + int(length)]
        key, equals, value = record[len(length) + 1 :].partition(b"=")
        if not equals or value[-1:] != b"\n":
            raise tarfile.ReadError("a pax record without its end")
        records[key.decode("utf-8", "replace")] = value[:-1]
        at += int(length)
    return records
