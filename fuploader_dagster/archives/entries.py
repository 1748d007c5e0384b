"""What a manifest lists: the members of a finished archive, and its frames."""

from __future__ import annotations

from typing import NamedTuple

from fuploader_dagster.disk.tar_headers import padding


class MemberEntry(NamedTuple):
    """One member of a finished archive, as the manifest lists it."""

    name: str
    size_bytes: int
    digest: bytes | None
    """The first 16 bytes of the payload's SHA-256; None in archives without a manifest."""
    offset: int
    """Where it begins in the stream of all frames: of a tar, where its header does."""
    header_bytes: int
    headers: str = ""
    """The message headers that are kept with it, as text (`disk/header_text.py`)."""
    stored_bytes: int = 0
    """Its length in the stream of all frames; 0 where that is tar: header, payload and padding."""

    @property
    def payload_offset(self) -> int:
        return self.offset + self.header_bytes

    @property
    def end(self) -> int:
        """Where the next member begins."""
        if self.stored_bytes:
            return self.offset + self.stored_bytes
        return self.payload_offset + self.size_bytes + len(padding(self.size_bytes))


class FrameEntry(NamedTuple):
    """A part of an archive that is read and checked by itself. Of a `.zst`, an independent zstd
    frame; other formats: docs/formats.md."""

    offset: int
    """In the archive file."""
    size_bytes: int
    """In the archive file."""
    tar_offset: int
    tar_bytes: int
    """What it decompresses to, of the stream of all frames."""
    digest: bytes
    """The first 16 bytes of the SHA-256 of its bytes in the archive file."""
