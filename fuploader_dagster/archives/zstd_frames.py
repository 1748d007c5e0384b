"""Frames that are zstd frames: how bytes become one, and how an archive of them ends.

Used by the formats `.tar.zst` and `.jsonl.zst`: such an archive ends with an end frame and the seek
table, by which other programs find frames too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import zstandard

from fuploader_dagster.archives.frame_encoder import Frame, FrameEncoder, Piece, not_decoded
from fuploader_dagster.archives.manifest import Manifest, digest
from fuploader_dagster.archives.members import MemberToPack
from fuploader_dagster.archives.seek_table import seek_table
from fuploader_dagster.disk.tar_headers import END, header_bytes, padding

DEFAULT_LEVEL = 3
_DEFAULT_HASH_LOG = 14
"""For zstd's default level, instead of 17: a smaller hash table leaves room in the core's cache.
Saves a seventh of zstd's time, and makes archives at most 1 % larger (docs/benchmarks.md). Other
levels use zstd's own values."""


class ZstdFrames(FrameEncoder):
    """What both formats share. Each thread has its own contexts."""

    end = b""
    """What the end frame holds."""

    def __init__(self, level: int = DEFAULT_LEVEL) -> None:
        self._parameters = zstandard.ZstdCompressionParameters(
            compression_level=level,
            hash_log=_DEFAULT_HASH_LOG if level == DEFAULT_LEVEL else 0,
            write_checksum=True,
        )
        self._contexts = threading.local()

    def compress(self, raw: bytes, member_digests: bytes, lengths: Sequence[int]) -> Frame:
        """A frame that was decompressed and compared."""
        contexts = self._contexts
        if not hasattr(contexts, "compressor"):
            contexts.compressor = zstandard.ZstdCompressor(compression_params=self._parameters)
            contexts.decompressor = zstandard.ZstdDecompressor()
        data: bytes = contexts.compressor.compress(raw)
        if contexts.decompressor.decompress(data) != raw:
            raise not_decoded()
        return Frame(data, len(raw), digest(data), member_digests, lengths)

    def end_frame(self) -> bytes:
        return self.compress(self.end, b"", ()).data

    def ending(self, manifest: Manifest, manifest_bytes: int) -> bytes:
        return manifest.end_frame + seek_table(manifest, manifest_bytes, len(self.end))


class TarFrames(ZstdFrames):
    """`.tar.zst`: the frames are the tar stream, just as the sources give it."""

    end = END

    def encode(self, members: Sequence[MemberToPack], raw: bytes, digests: bytes) -> Frame:
        lengths = [
            header_bytes(m.name, m.size_bytes, m.headers)
            + m.size_bytes
            + len(padding(m.size_bytes))
            for m in members
        ]
        return self.compress(raw, digests, lengths)

    def encode_large(
        self, member: MemberToPack, pieces: Iterator[Piece]
    ) -> Iterator[Callable[[], Frame]]:
        size = 0
        for piece in pieces:
            size += len(piece.raw)
            yield partial(self.compress, piece.raw, piece.digest, [size] if piece.digest else ())
