"""All readers that are fuzzed, by the names that the command line knows them by."""

from __future__ import annotations

from tests.fuzz.archive_targets import ArchiveTarget
from tests.fuzz.form_targets import LinesTarget, LineTarget, ParquetTarget, ZipTarget
from tests.fuzz.former_targets import (
    FormerArchiveTarget,
    FormerKeysTarget,
    FormerNamesTarget,
    FormerNotesTarget,
)
from tests.fuzz.intake_targets import ConfigTarget, EnvelopeTarget, PropertiesTarget
from tests.fuzz.slot_targets import IndexTarget, RecordsTarget, SealTarget, SlotTarget
from tests.fuzz.target import Target

TARGETS: dict[str, type[Target]] = {
    target.name: target
    for target in (
        EnvelopeTarget,
        PropertiesTarget,
        IndexTarget,
        SlotTarget,
        ArchiveTarget,
        LinesTarget,
        LineTarget,
        ZipTarget,
        ParquetTarget,
        SealTarget,
        RecordsTarget,
        ConfigTarget,
        FormerKeysTarget,
        FormerNamesTarget,
        FormerArchiveTarget,
        FormerNotesTarget,
    )
}
