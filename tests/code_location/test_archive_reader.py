"""Downstream assets have the archive of their partition as an input, as their annotation asks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from fuploader_dagster import Archive, ArchiveReader, build_resources, open_partition
from fuploader_dagster.assets.partitions import RANGE_END_TAG, RANGE_START_TAG
from fuploader_dagster.errors import ConfigError, DamagedArchive, StoreRefused
from tests.code_location.test_assets import Location
from tests.settings import archives_in, pipeline, sealed

PAGE = Path(__file__).parents[2] / "docs" / "host-project.md"
FILES = {"a.json": b'{"n": 1}', "b.json": b'{"n": 2}'}


class Downstream:
    """A pipeline with two archives, and assets that depend on them."""

    def __init__(self, folder: Path) -> None:
        self.location = Location(pipeline(folder))
        self.names = self.location.names
        self.keys = [sealed(self.location.settings, FILES).seal.partition for _ in range(2)]
        assert self.location.ship(self.keys).success
        self.given: list[Any] = []

    def asset(
        self, annotation: Any, *, partitions: bool = True, backfill: dg.BackfillPolicy | None = None
    ) -> dg.AssetsDefinition:
        def taken(archive):  # type: ignore[no-untyped-def]
            self.given.append(archive if _plain(archive) else _names(archive))

        taken.__annotations__ = {} if annotation is None else {"archive": annotation}
        return dg.asset(
            ins={"archive": dg.AssetIn(self.names.uploaded_archive)},
            partitions_def=self.names.partitions() if partitions else None,
            backfill_policy=backfill,
        )(taken)

    def run(
        self,
        asset: dg.AssetsDefinition,
        *,
        partition: str | None = None,
        tags: dict[str, str] | None = None,
        resources: dict[str, Any] | None = None,
    ) -> tuple[bool, str]:
        """Whether a run of the asset succeeded, and what its errors say."""
        merged = dg.Definitions.merge(
            self.location.definitions,
            dg.Definitions(assets=[asset], resources={"io_manager": dg.mem_io_manager}),
        )
        result = merged.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=self.location.instance,
            asset_selection=[asset.key],
            partition_key=partition,
            tags=tags,
            resources=resources,
            raise_on_error=False,
        )
        errors = [one.step_failure_data.error for one in result.all_events if one.is_step_failure]
        return result.success, "\n".join(str(one) for one in errors)


def _plain(given: Any) -> bool:
    values = given.values() if isinstance(given, dict) else [given]
    return not any(isinstance(one, Archive) for one in values)


def _names(given: Any) -> Any:
    """Read while the asset runs: that archives are open then is what it wants."""
    if isinstance(given, dict):
        return {key: sorted(one.names()) for key, one in given.items()}
    return sorted(given.names())


@pytest.fixture
def downstream(tmp_path: Path) -> Downstream:
    return Downstream(tmp_path)


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (None, ["a.json", "b.json"]),
        (Any, ["a.json", "b.json"]),
        (Archive, ["a.json", "b.json"]),
        (dict[str, bytes], FILES),
        (list[dict[str, Any]], [{"n": 1}, {"n": 2}]),
    ],
)
def test_the_annotation_says_what_an_asset_is_given(
    downstream: Downstream, annotation: Any, expected: Any
) -> None:
    success, said = downstream.run(downstream.asset(annotation), partition=downstream.keys[0])
    assert success, said
    assert downstream.given == [expected]


def test_bytes_are_those_of_the_stored_archive(downstream: Downstream, tmp_path: Path) -> None:
    success, said = downstream.run(downstream.asset(bytes), partition=downstream.keys[0])
    assert success, said
    assert downstream.given[0] in [path.read_bytes() for path in archives_in(tmp_path / "objects")]


def test_a_run_of_several_partitions_is_given_their_archives_by_key(downstream: Downstream) -> None:
    tags = {RANGE_START_TAG: downstream.keys[0], RANGE_END_TAG: downstream.keys[1]}
    single_run = dg.BackfillPolicy.single_run()
    several = downstream.asset(dict[str, Archive], backfill=single_run)
    success, said = downstream.run(several, tags=tags)
    assert success, said
    assert downstream.given == [{key: ["a.json", "b.json"] for key in downstream.keys}]
    success, said = downstream.run(downstream.asset(Archive, backfill=single_run), tags=tags)
    assert not success
    assert "is 2 archives of docs, and is annotated as one (annotate the input dict[str, Ar" in said


def test_an_asset_without_partitions_is_told_so_and_may_take_all(downstream: Downstream) -> None:
    success, said = downstream.run(downstream.asset(Archive, partitions=False))
    assert not success
    assert "taken has no partitions, so its input 'archive' is 2 archives of docs" in said
    assert "(give it the partitions Names.of(pipeline).partitions(); to take all of them" in said
    success, said = downstream.run(downstream.asset(dict[str, Archive], partitions=False))
    assert success, said
    assert downstream.given == [{key: ["a.json", "b.json"] for key in downstream.keys}]


def test_an_archive_that_is_gone_is_named_and_the_other_can_be_read(
    downstream: Downstream, tmp_path: Path
) -> None:
    gone, left = downstream.keys
    with open_partition(downstream.location.settings, gone) as archive:
        address = archive.address
    for path in (tmp_path / "objects").rglob("*.tar.zst"):
        if path.name in address:
            path.unlink()
    success, said = downstream.run(downstream.asset(Archive), partition=gone)
    assert not success
    assert f"StoreRefused: the archive of partition {gone} cannot be read: there is no arch" in said
    assert "(if somebody, or a rule of the bucket, deleted it, bring it back" in said
    success, said = downstream.run(downstream.asset(Archive), partition=left)
    assert success, said


@pytest.mark.parametrize("annotation", [str, dict, list[str], dict[str, str]])
def test_an_annotation_that_no_archive_can_be_is_refused_with_those_that_it_can(
    downstream: Downstream, annotation: Any
) -> None:
    success, said = downstream.run(downstream.asset(annotation), partition=downstream.keys[0])
    assert not success
    assert "the input 'archive' of taken is annotated" in said
    assert "(annotate it Archive, bytes, dict[str, bytes] (files by name)," in said
    assert "docs_archives" in said


def test_an_asset_takes_the_reader_as_a_resource(downstream: Downstream) -> None:
    def counted(context, docs_archives):  # type: ignore[no-untyped-def]
        with docs_archives.open(context.partition_key) as archive:
            downstream.given.append(len(archive.names()))

    counted.__annotations__ = {
        "context": dg.AssetExecutionContext,
        "docs_archives": dg.ResourceParam[ArchiveReader],
    }
    asset = dg.asset(partitions_def=downstream.names.partitions())(counted)
    success, said = downstream.run(asset, partition=downstream.keys[1])
    assert success, said
    assert downstream.given == [2]


def test_a_reader_without_dagster_reads_rows_files_and_bytes(downstream: Downstream) -> None:
    reader, key = ArchiveReader(downstream.location.settings), downstream.keys[0]
    assert reader.rows(key) == [{"n": 1}, {"n": 2}]
    assert reader.files(key) == FILES
    assert reader.content(key)
    with pytest.raises(ConfigError, match=r"'\.\./x' is no partition of docs \(keys come from"):
        reader.open("../x")
    unknown = key.replace("s0", "s7")
    with pytest.raises(StoreRefused, match=f"the archive of partition {unknown} cannot be read"):
        reader.open(unknown)


def test_a_file_that_is_no_row_is_named(tmp_path: Path) -> None:
    location = Location(pipeline(tmp_path))
    key = sealed(location.settings, {"a.json": b'{"n": 1}', "b.txt": b"[1]"}).seal.partition
    assert location.ship([key]).success
    reader = ArchiveReader(location.settings)
    with pytest.raises(ConfigError, match=r"'b\.txt' in .* is not an object of JSON.*\(take the f"):
        reader.rows(key)


def test_bytes_that_rotted_in_the_store_are_not_handed_on(
    downstream: Downstream, tmp_path: Path
) -> None:
    for path in archives_in(tmp_path / "objects"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    reader = ArchiveReader(downstream.location.settings)
    with pytest.raises(DamagedArchive, match="is not what was stored: its digest differs"):
        reader.content(downstream.keys[0])


def test_an_asset_cannot_be_stored_as_an_archive(downstream: Downstream) -> None:
    asset = dg.asset(
        partitions_def=downstream.names.partitions(),
        io_manager_key=downstream.names.archives_resource,
    )(_five)
    success, said = downstream.run(asset, partition=downstream.keys[0])
    assert not success
    assert "what _five returned (int) cannot be stored as an archive of docs: archives are" in said


def _five() -> int:
    return 5


def test_the_downstream_asset_of_the_page_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    (block,) = [one for one in blocks if "def sizes(" in one]
    exec(compile(block, str(PAGE), "exec", dont_inherit=True), found)
    settings, names = found["documents"], found["names"]
    key = sealed(settings, {f"{n}.json": b"{}" for n in range(7)}).seal.partition
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(names.partition_set, [key])
        run = (
            found["defs"]
            .resolve_implicit_global_asset_job_def()
            .execute_in_process(
                instance=instance,
                partition_key=key,
                asset_selection=[names.packed_archive, names.uploaded_archive, found["sizes"].key],
            )
        )
    assert run.success
    (event,) = run.asset_materializations_for_node("sizes")
    assert event.metadata["files"].value == 7


def test_downstream_assets_are_materialized_by_themselves_with_the_pipelines_resources(
    downstream: Downstream,
) -> None:
    result = dg.materialize(
        [
            downstream.asset(dict[str, bytes]),
            dg.AssetSpec(
                downstream.names.uploaded_archive,
                partitions_def=downstream.names.partitions(),
            ).with_io_manager_key(downstream.names.archives_resource),
        ],
        instance=downstream.location.instance,
        partition_key=downstream.keys[0],
        resources=build_resources(downstream.location.settings),
        selection=["taken"],
    )
    assert result.success
    assert downstream.given == [FILES]
