"""A program: packs a sealed slot, or reads its archive, and says how its memory has grown.

`python -m tests.unit.archives.large_member FOLDER FORMAT PARTITION pack|read`
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.delivery.pack import pack
from fuploader_dagster.slots.sealing import find_sealed
from tests.settings import pipeline, sealed


def main() -> None:
    folder, archive_format, partition, what = sys.argv[1:]
    small = pipeline(Path(folder) / what, archive_format=archive_format)
    pack_and_read(
        small.storage_root, sealed(small, {"small": b"{}"}).seal.partition, archive_format
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pack_and_read(Path(folder) / "data", partition, archive_format, what)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10)


def pack_and_read(root: Path, partition: str, archive_format: str, what: str = "") -> None:
    settings = pipeline(root.parent, archive_format=archive_format)
    slot = find_sealed(settings.layout, partition)
    assert slot is not None
    if what != "read":
        pack(slot, settings)
    if what != "pack":
        with Archive.open(settings.layout.archives / slot.seal.archive) as archive:
            archive.verify().raise_if_damaged()
            for member in archive.members:
                for _ in archive.stream(member.name):
                    pass


if __name__ == "__main__":
    main()
