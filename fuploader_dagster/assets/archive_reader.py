"""Archives for downstream assets: the resource `documents_archives`, which is an IO manager too.

    @dg.asset(
        ins={"archive": dg.AssetIn(names.uploaded_archive)}, partitions_def=names.partitions()
    )
    def sizes(archive: Archive) -> dg.MaterializeResult: ...

The annotation of the input says what it is given, of the archive of the run's partition:

- `Archive` (or none): the archive itself, open. It is read by ranges, as needed.
- `dict[str, bytes]`: each file by its name.
- `list[dict[str, Any]]`: rows, the object of JSON in each file, in the archive's order.
- `bytes`: the archive's own bytes.
- `dict[str, Archive]`: the archives of several partitions, by their keys.

All but the archives are in memory as a whole. Nothing is written: the pipeline makes archives.
"""

# No `from __future__ import annotations` here: Dagster reads the annotation of `context`.

import hashlib
import weakref
from collections.abc import Sequence
from contextlib import closing
from typing import Any, get_args, get_origin

import dagster as dg
import msgspec

from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.assets.overrides import object_store_of
from fuploader_dagster.assets.partitions import Names
from fuploader_dagster.contracts.counts import counted
from fuploader_dagster.contracts.object_store import OpensObjectStore
from fuploader_dagster.delivery.find_archive import ArchiveFinder, FoundArchive
from fuploader_dagster.disk.layout import PartitionKey
from fuploader_dagster.errors import UNREADABLE_JSON, ConfigError, DamagedArchive, StoreRefused
from fuploader_dagster.settings.pipeline import Pipeline

_FORMS = (
    "Archive, bytes, dict[str, bytes] (files by name), list[dict[str, Any]] (rows) or, for several "
    "partitions, dict[str, Archive]"
)


class ArchiveReader(dg.IOManager):
    """The archives of a pipeline, by partition. Thread-safe."""

    def __init__(self, pipeline: Pipeline, *, store: OpensObjectStore | None = None) -> None:
        """`store`: another one than the pipeline's, that has its archives."""
        if store is not None:
            pipeline = pipeline.model_copy(update={"store": store})
        self._pipeline = pipeline
        self._finder = ArchiveFinder({pipeline.name: pipeline})

    def open(self, partition: str) -> Archive:
        """The archive of a partition, open until it is closed or nobody has it any more.

        Raises `StoreRefused` if it does not exist or is gone, and what opening raises.
        """
        source = self._find(partition).source
        archive = Archive.open(source)
        weakref.finalize(archive, source.close)
        return archive

    def files(self, partition: str) -> dict[str, bytes]:
        """Each file of a partition's archive, by its name. Errors as in `Archive.files`."""
        with self.open(partition) as archive:
            return dict(archive.payloads(lambda _: True))

    def rows(self, partition: str) -> list[dict[str, Any]]:
        """The object of JSON in each file of a partition's archive.

        Raises `ConfigError` for a file that has none.
        """
        found = []
        with self.open(partition) as archive:
            for name, content in archive.payloads(lambda _: True):
                try:
                    found.append(msgspec.json.decode(content, type=dict[str, Any]))
                except UNREADABLE_JSON:
                    raise ConfigError(
                        f"{name!r} in {archive.address} is not an object of JSON, so it is no row",
                        hint="take the files instead, and decode them yourself",
                    ) from None
        return found

    def content(self, partition: str) -> bytes:
        """The archive's own bytes. Raises `DamagedArchive` if they are not what was stored."""
        found = self._find(partition)
        with closing(found.source) as source:
            content = source.read(0, source.size_bytes)
        if found.sha256 not in (None, hashlib.sha256(content).hexdigest()):
            raise DamagedArchive(
                f"{found.source.address} is not what was stored: its digest differs",
                hint="`fuploader verify` says what is damaged, `fuploader restore` saves the rest",
            )
        return content

    def load_input(self, context: dg.InputContext) -> Any:
        """What the input's annotation asks for."""
        form = context.dagster_type.typing_type
        keys = list(context.asset_partition_keys)
        if _same(form, dict[str, Archive]):
            return {key: self.open(key) for key in keys}
        partition = self._only_one(keys, context)
        if form is Any or form is Archive:
            return self.open(partition)
        if form is bytes:
            return self.content(partition)
        if _same(form, dict[str, bytes]):
            return self.files(partition)
        if _same(form, list[dict[str, Any]]):
            return self.rows(partition)
        raise ConfigError(
            f"the input {context.name!r} of {context.op_def.name} is annotated {_spelled(form)}, "
            f"and no archive can be given as that",
            hint=f"annotate it {_FORMS}; or take the resource "
            f"{Names.of(self._pipeline).archives_resource} and read from it",
        )

    def _only_one(self, keys: Sequence[str], context: dg.InputContext) -> str:
        """The partition of the run. Raises `ConfigError` if there is not one."""
        asset = context.op_def.name
        given = f"{counted(len(keys), 'archive')} of {self._pipeline.name}"
        several = "annotate the input dict[str, Archive]"
        if not context.step_context.has_partitions:
            raise ConfigError(
                f"{asset} has no partitions, so its input {context.name!r} is {given}, and is "
                f"annotated as one",
                hint=f"give it the partitions Names.of(pipeline).partitions(); to take all of them "
                f"at once, {several}",
            )
        if len(keys) != 1:
            raise ConfigError(
                f"in this run the input {context.name!r} of {asset} is {given}, and is annotated "
                f"as one",
                hint=f"{several}, or give {asset} a backfill policy of one partition per run",
            )
        return keys[0]

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Refuse to write: archives come from the queue."""
        raise ConfigError(
            f"what {context.op_def.name} returned ({type(obj).__name__}) cannot be stored as an "
            f"archive of {self._pipeline.name}: archives are made of messages only",
            hint="give the asset another IO manager",
        )

    def _find(self, partition: str) -> FoundArchive:
        if PartitionKey.parse(partition) is None:
            raise ConfigError(
                f"{partition!r} is no partition of {self._pipeline.name}",
                hint="keys come from Names.of(pipeline).partitions(): an asset with them has them "
                "as context.partition_key",
            )
        try:
            return self._finder.find(partition)
        except StoreRefused as error:
            raise StoreRefused(
                f"the archive of partition {partition} cannot be read: {error.message}",
                hint=error.hint
                or "if somebody, or a rule of the bucket, deleted it, bring it "
                "back (an older version, a mirror); its messages are nowhere else",
            ) from error


def build_archive_reader(pipeline: Pipeline) -> dg.IOManagerDefinition:
    """The resource `documents_archives`, an `ArchiveReader`: for inputs of assets that depend on
    archives, and for assets that open them by themselves."""
    names = Names.of(pipeline)

    def archives(context: dg.InitResourceContext) -> ArchiveReader:
        return ArchiveReader(pipeline, store=object_store_of(context.resources, pipeline))

    return dg.IOManagerDefinition(
        resource_fn=archives,
        required_resource_keys={names.store},
        description=f"Reads the archives of {pipeline.name}, for assets downstream of "
        f"{names.uploaded_archive.to_user_string()}",
    )


def _same(form: Any, wanted: Any) -> bool:
    """Whether two annotations mean the same. Dagster spells `dict` as `typing.Dict`."""
    origin = get_origin(wanted)
    if origin is None:
        return form is wanted
    inner, asked = get_args(form), get_args(wanted)
    return get_origin(form) is origin and len(inner) == len(asked) and all(map(_same, inner, asked))


def _spelled(form: Any) -> str:
    return form.__name__ if isinstance(form, type) and not get_args(form) else str(form)
