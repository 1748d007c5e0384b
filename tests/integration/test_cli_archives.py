"""`ls`, `cat`, `verify`, `restore` as a person types them: on paths, addresses, partition keys."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from fuploader_dagster.archives.reader import Archive
from fuploader_dagster.archives.writer import write_archive
from fuploader_dagster.cli import app
from fuploader_dagster.contracts.source import Message
from fuploader_dagster.dead_letters.letters import DeadLetterBox
from fuploader_dagster.delivery.attempts import Done
from fuploader_dagster.delivery.process import process_partitions
from fuploader_dagster.delivery.ship import ship
from fuploader_dagster.disk.durable import make_dirs
from fuploader_dagster.errors import BadMessage
from fuploader_dagster.settings.loading import load_pipelines
from fuploader_dagster.slots.slot import SlotOwner
from tests.integration.test_cli import FUPLOADER, configure
from tests.integration.test_cli import fuploader as in_a_process
from tests.processors_for_tests import script
from tests.servers.swift import SwiftServer
from tests.settings import sealed
from tests.unit.archives.archives import payloads, segment

CONTENTS = payloads()


class Answer(NamedTuple):
    """What a command said."""

    code: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.decode().splitlines()


Fuploader = Callable[..., Answer]


@pytest.fixture
def fuploader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Iterator[Fuploader]:
    """Runs a command in the temporary folder, without the second that a process takes to start."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["fuploader", *arguments])
        capfdbinary.readouterr()
        with pytest.raises(SystemExit) as left:
            app.main()
        out, err = capfdbinary.readouterr()
        code = left.value.code
        return Answer(code if isinstance(code, int) else 0, out, err.decode())

    yield run


def packed(folder: Path) -> Path:
    path = folder / "a.tar.zst"
    with segment(folder / "segment", CONTENTS) as source:
        write_archive(path, source, frame_bytes=16_384)
    return path


def damaged(path: Path, at: int = 1000) -> Path:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    return path


def shipped(folder: Path, files: dict[str, bytes]) -> Done:
    """One slot of the folder's pipeline, uploaded."""
    (settings,) = load_pipelines(folder / "fuploader.yaml").values()
    sealed(settings, files)
    (outcome,) = ship(settings, settings.store.open())
    assert isinstance(outcome, Done)
    return outcome


def zip_packer(directory: Path) -> Path:
    """A packer of a user's own."""
    made = directory.with_suffix(".zip")
    with zipfile.ZipFile(made, "w") as file:
        for path in sorted(directory.iterdir()):
            file.write(path, path.name)
    return made


def test_ls_lists_sizes_and_names_and_json_says_more(fuploader: Fuploader, tmp_path: Path) -> None:
    path = packed(tmp_path)
    plain = fuploader("ls", str(path))
    assert plain.code == 0, plain.err
    assert plain.lines == [f"{len(b):>12} {n}" for n, b in CONTENTS.items()]
    answer = json.loads(fuploader("ls", str(path), "l*", "--json").out)
    assert {m["name"]: m["size_bytes"] for m in answer["members"]} == {
        n: len(b) for n, b in CONTENTS.items() if n.startswith("l")
    }
    assert answer["size_bytes"] == path.stat().st_size
    assert answer["has_manifest"] is True
    assert answer["damages"] == []


def test_of_an_archive_with_results_everything_reads_both_parts(
    fuploader: Fuploader, tmp_path: Path
) -> None:
    path = tmp_path / "a.tar.zst"
    results = {"results/a.json": b"out of a", "results/b.json": b"out of b"}
    with (
        segment(tmp_path / "one", CONTENTS, sealed=True) as first,
        segment(tmp_path / "two", results, sealed=True) as second,
    ):
        write_archive(path, first, second, metadata={"results": "2"})
    assert fuploader("ls", str(path), "results/*").lines == [
        f"{len(b):>12} {n}" for n, b in results.items()
    ]
    listed = json.loads(fuploader("ls", str(path), "--json").out)["members"]
    assert [m["name"] for m in listed] == [*CONTENTS, *results]
    assert [m["name"] for m in listed if m["is_result"]] == list(results)
    assert fuploader("cat", str(path), "results/b.json").out == b"out of b"
    assert fuploader("verify", str(path)).code == 0
    assert fuploader("restore", str(path), str(tmp_path / "out")).code == 0
    assert (tmp_path / "out" / "results" / "a.json").read_bytes() == b"out of a"


def test_status_and_replay_know_what_was_processed(fuploader: Fuploader, tmp_path: Path) -> None:
    configure(tmp_path, process={"kind": "tests.processors_for_tests:Script", "keep": "results"})
    (settings,) = load_pipelines(tmp_path / "fuploader.yaml").values()
    stored = shipped(tmp_path, {"a.json": script()})
    waiting = sealed(settings, {"b.json": script()}).seal.partition
    assert list(process_partitions([waiting], settings))
    make_dirs(settings.layout.redo / stored.partition)
    plain = fuploader("status")
    assert plain.code == 0, plain.err
    assert "1 of them is processed, or being processed" in plain.lines
    assert any(f"{stored.partition} is being processed again" in line for line in plain.lines)
    (found,) = json.loads(fuploader("status", "--json").out)
    assert (found["sealed"], found["processed"], found["redos"]) == (1, 1, [stored.partition])
    answer = fuploader("replay", stored.partition, "--pipeline", settings.name)
    assert answer.code == 4
    assert f"nothing to replay, its archive holds only results: {stored.partition}" in answer.err


def test_what_the_system_refuses_is_one_sentence_that_names_it(
    fuploader: Fuploader, tmp_path: Path
) -> None:
    path = packed(tmp_path)
    refused = fuploader("restore", str(path), str(path))
    assert (refused.code, refused.err.splitlines()[-1]) == (4, f"error: {path}: File exists")
    with Path("/dev/full").open("wb") as full:
        told = subprocess.run(
            [str(FUPLOADER), "cat", str(path)], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert told.returncode == 3
    assert b"error: standard output: No space left on device" in told.stderr
    assert b"Traceback" not in told.stderr


def test_one_damaged_page_of_the_manifest_is_one_damage(
    fuploader: Fuploader, tmp_path: Path
) -> None:
    path = packed(tmp_path)
    with Archive.open(path) as archive:
        assert archive.manifest is not None
        page = sum(archive.manifest.frame_sizes) + 20
    answer = fuploader("verify", str(damaged(path, page)))
    assert answer.code == 5
    (told,) = [line for line in answer.err.splitlines() if line.startswith("damaged: ")]
    assert "page 0 of the manifest" in told


def test_cat_writes_one_member_or_the_archive_as_it_lies(
    fuploader: Fuploader, tmp_path: Path
) -> None:
    path = packed(tmp_path)
    for arguments, expected in (
        (["消息.json"], CONTENTS["消息.json"]),
        (["very large.bin"], CONTENTS["very large.bin"]),
        ([], path.read_bytes()),
    ):
        assert fuploader("cat", str(path), *arguments) == (0, expected, "")


def test_verify_proves_a_whole_archive_and_names_what_is_damaged(
    fuploader: Fuploader, tmp_path: Path
) -> None:
    path = packed(tmp_path)
    whole = fuploader("verify", str(path))
    assert whole.code == 0
    assert f"{len(CONTENTS)} members" in whole.out.decode()
    assert b"every byte is as it was written" in whole.out
    answer = fuploader("verify", str(damaged(path)), "--json")
    assert answer.code == 5
    (verdict,) = json.loads(answer.out)
    first = next(iter(CONTENTS))
    assert {damage["member"] for damage in verdict["damages"]} >= {first}
    assert first in answer.err


def test_restore_gets_out_what_is_intact_and_ends_with_5(
    fuploader: Fuploader, tmp_path: Path
) -> None:
    path = damaged(packed(tmp_path))
    answer = fuploader("restore", str(path), "out", "--json")
    assert answer.code == 5
    report = json.loads(answer.out)
    lost = {damage["member"] for damage in report["damages"]}
    there = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert there == {n: b for n, b in CONTENTS.items() if n not in lost}
    assert report["restored"] == len(there) > 10


def test_restore_by_pattern_never_writes_over_a_file(fuploader: Fuploader, tmp_path: Path) -> None:
    path = packed(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "last.json").write_bytes(b"mine")
    answer = fuploader("restore", str(path), "out", "--only", "*a*.json")
    assert answer.code == 4
    assert "'last.json' already exists with other content" in answer.err
    assert (tmp_path / "out" / "last.json").read_bytes() == b"mine"


def without_checksum(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "theirs.tar.zst"
    source = folder / "theirs"
    source.mkdir()
    for name, content in files.items():
        (source / name).write_bytes(content)
    subprocess.run(["bsdtar", "--zstd", "-cf", path, "-C", source, *files], check=True)
    return path


def test_what_nothing_proves_is_said_with_an_exit_code_of_its_own(
    fuploader: Fuploader, tmp_path: Path
) -> None:
    path = without_checksum(tmp_path, {"a.json": b"alpha", "b.json": b"beta"})
    answer = fuploader("verify", str(path))
    assert (answer.code, answer.out) == (6, b"")
    assert "no damage shows in 2 members, but nothing proves the bytes of 2 members" in answer.err
    answer = fuploader("verify", str(path), "--json")
    (verdict,) = json.loads(answer.out)
    assert answer.code == 6
    assert (verdict["proof"], verdict["unproven_members"]) == ("", 2)
    assert verdict["unproven_names"] == ["a.json", "b.json"]
    assert fuploader("verify", str(path), str(packed(tmp_path))).code == 6
    assert fuploader("verify", str(path), str(damaged(packed(tmp_path)))).code == 5
    answer = fuploader("restore", str(path), "out")
    assert answer.code == 0
    assert "nothing proves the bytes of 2 members ('a.json', 'b.json')" in answer.err
    answer = fuploader("cat", str(path), "a.json")
    assert (answer.code, answer.out) == (0, b"alpha")
    assert "nothing proves the bytes of 'a.json'" in answer.err


def test_a_stored_archive_without_checksums_is_proven_as_a_whole_by_its_receipt(
    fuploader: Fuploader, tmp_path: Path
) -> None:
    configure(tmp_path, packer="tests.lives:pack_by_hand")
    one = shipped(tmp_path, {f"{n}.json": b"%d" % n * 50 for n in range(40)})
    answer = fuploader("verify", one.partition)
    assert answer.code == 0, answer.err
    assert b"as a whole: as it was stored" in answer.out
    assert one.receipt is not None
    stored = tmp_path / "objects" / one.receipt.key
    content = stored.read_bytes()
    for at in range(100, len(content), 7):
        stored.write_bytes(content)
        damaged(stored, at)
        assert fuploader("verify", one.partition).code == 5


@pytest.mark.parametrize("command", ["ls", "cat", "restore"])
@pytest.mark.parametrize("whole", [True, False], ids=["ours", "without a manifest"])
def test_what_matches_no_member_is_no_success(
    command: str, whole: bool, fuploader: Fuploader, tmp_path: Path
) -> None:
    path = packed(tmp_path)
    if not whole:
        subprocess.run(["tar", "--zstd", "-cf", path, "-C", "/etc", "hostname"], check=True)
    arguments = [command, str(path), *(["out", "--only"] if command == "restore" else [])]
    answer = fuploader(*arguments, "no*such")
    assert answer.code == 4
    assert "'no*such'" in answer.err
    assert "fuploader ls lists the members" in answer.err
    assert answer.out == b""


def test_a_partition_key_leads_to_its_archive_through_the_receipt(
    fuploader: Fuploader, tmp_path: Path
) -> None:
    configure(tmp_path)
    one = shipped(tmp_path, {"a.json": b"alpha", "b.json": b"beta"})
    assert fuploader("cat", one.partition, "b.json").out == b"beta"
    assert fuploader("verify", one.partition).code == 0
    assert one.receipt is not None
    assert fuploader("cat", one.receipt.address, "a.json").out == b"alpha"


def test_an_object_that_was_replaced_is_damage_though_it_is_whole_in_itself(
    fuploader: Fuploader, tmp_path: Path
) -> None:
    configure(tmp_path)
    one = shipped(tmp_path, {"a.json": b"alpha"})
    assert one.receipt is not None
    (tmp_path / "objects" / one.receipt.key).write_bytes(packed(tmp_path).read_bytes())
    answer = fuploader("verify", one.partition)
    assert answer.code == 5
    assert "is not the object that was confirmed" in answer.err
    assert "find out who replaced it" in answer.err


def test_damage_in_a_stored_archive_is_named_member_by_member_by_its_partition_too(
    fuploader: Fuploader, tmp_path: Path
) -> None:
    configure(tmp_path)
    one = shipped(tmp_path, {"a.json": b"alpha"})
    assert one.receipt is not None
    damaged(tmp_path / "objects" / one.receipt.key, 20)
    answer = fuploader("verify", one.partition, "--json")
    assert answer.code == 5
    (verdict,) = json.loads(answer.out)
    assert [damage["member"] for damage in verdict["damages"]] == [None, "a.json"]
    assert verdict["proof"] == ""
    assert "find out who replaced it" not in answer.err


def test_an_archive_that_is_not_there_does_not_hide_the_others(
    fuploader: Fuploader, tmp_path: Path
) -> None:
    path = packed(tmp_path)
    answer = fuploader("verify", "nothing.tar.zst", str(path))
    assert answer.code == 4
    assert b"every byte is as it was written" in answer.out
    assert "refused: there is no archive nothing.tar.zst" in answer.err
    answer = fuploader("verify", "nothing.tar.zst", str(damaged(path)))
    assert answer.code == 5
    assert "damaged: " in answer.err
    assert "refused: there is no archive nothing.tar.zst" in answer.err


def test_another_nodes_partition_is_found_by_the_key_template(
    fuploader: Fuploader, tmp_path: Path
) -> None:
    key = "{sealed_at:%Y%m%d%H}/{archive}"
    configure(tmp_path, key=key)
    one = shipped(tmp_path, {"a.json": b"alpha"})
    for path in (tmp_path / "data" / "docs" / "receipts").iterdir():
        path.unlink()
    assert fuploader("cat", one.partition, "a.json").out == b"alpha"
    configure(tmp_path, key=key, archive_format="zip")  # that node packs so, or did once
    assert fuploader("cat", one.partition, "a.json").out == b"alpha"
    configure(tmp_path, key=key, timezone="Asia/Shanghai")  # it had none then
    assert fuploader("cat", one.partition, "a.json").out == b"alpha"


@pytest.mark.parametrize("configured", [True, False])
def test_an_s3_address_is_opened_by_its_pipeline_or_by_the_environment(
    swift: SwiftServer, tmp_path: Path, configured: bool
) -> None:
    bucket = swift.fresh_bucket()
    store = {
        "kind": "s3",
        "bucket": bucket,
        "prefix": "below",
        "endpoint_url": swift.endpoint,
        "region": swift.region,
        "access_key_id": swift.access_key,
        "secret_access_key": {"env": "TEST_SECRET"},
    }
    if configured:
        configure(tmp_path, store=store)
        environment = {"TEST_SECRET": swift.secret_key}
    else:
        environment = {
            "AWS_ACCESS_KEY_ID": swift.access_key,
            "AWS_SECRET_ACCESS_KEY": swift.secret_key,
            "AWS_ENDPOINT_URL": swift.endpoint,
            "AWS_DEFAULT_REGION": swift.region,
        }
    body = packed(tmp_path).read_bytes()
    swift.client().put_object(Bucket=bucket, Key="below/x/a.tar.zst", Body=body)
    address = f"s3://{bucket}/below/x/a.tar.zst"
    listed = in_a_process(tmp_path, "ls", address, **environment)
    assert listed.returncode == 0, listed.stderr
    assert len(listed.stdout.splitlines()) == len(CONTENTS)
    read = in_a_process(tmp_path, "cat", address, "last.json", **environment)
    assert read.stdout == "{}"
    missing = in_a_process(tmp_path, "cat", f"{address}.no", "x", **environment)
    assert missing.returncode == 4
    assert "there is no archive" in missing.stderr


def test_what_a_custom_packer_made_is_verified_whole_and_the_rest_is_declined_in_words(
    fuploader: Fuploader, tmp_path: Path
) -> None:
    configure(
        tmp_path,
        packer="tests.integration.test_cli_archives:zip_packer",
        archive_suffix=".zip",
    )
    one = shipped(tmp_path, {"a.json": b"alpha"})
    for command in (["ls"], ["cat", "a.json"], ["restore", "out"]):
        answer = fuploader(command[0], one.partition, *command[1:])
        assert answer.code == 4
        assert "is a zip archive of another program; members can only be read from" in answer.err
        assert "unzip" in answer.err
    whole = fuploader("verify", one.partition)
    assert whole.code == 0, whole.err
    assert b"as a whole: as it was stored" in whole.out
    assert one.receipt is not None
    damaged(tmp_path / "objects" / one.receipt.key, 20)
    answer = fuploader("verify", one.partition)
    assert answer.code == 5


@pytest.mark.parametrize(
    ("target", "code", "sentence"),
    [
        ("nothing.tar.zst", 4, "there is no archive nothing.tar.zst"),
        ("cos://nobody/k", 2, "no pipeline stores into cos://nobody"),
        ("20260101T000000000Z-local-s0-000009", 4, "no archive of partition"),
    ],
)
def test_what_is_not_there_is_one_sentence(
    fuploader: Fuploader, tmp_path: Path, target: str, code: int, sentence: str
) -> None:
    configure(tmp_path)
    answer = fuploader("ls", target)
    assert answer.code == code
    assert sentence in answer.err
    assert "Traceback" not in answer.err


def test_a_name_cannot_command_the_terminal(fuploader: Fuploader, tmp_path: Path) -> None:
    path = tmp_path / "a.tar.zst"
    with segment(tmp_path / "segment", {"\x1b[31m\n.json": b"", "[red].json": b"x"}) as source:
        write_archive(path, source)
    answer = fuploader("ls", str(path))
    assert answer.lines == [
        f"{0:>12} \\x1b[31m\\n.json",
        f"{1:>12} [red].json",
    ]


def test_find_says_which_archives_hold_a_name_and_rebuild_learns_it_from_the_store(
    fuploader: Fuploader, tmp_path: Path
) -> None:
    configure(tmp_path)
    assert fuploader("find", "a.json").code == 4
    first, second = (shipped(tmp_path, {"a.json": b"%d" % n, f"{n}.json": b""}) for n in (1, 2))
    assert first.receipt is not None
    lines = fuploader("find", "a.json").lines
    assert [line.split()[2] for line in lines] == [first.partition, second.partition]
    assert lines[0].split()[3] == first.receipt.address
    found = [json.loads(line) for line in fuploader("find", "[12].json", "--json").lines]
    assert [(one["name"], one["partition"]) for one in found] == [
        ("1.json", first.partition),
        ("2.json", second.partition),
    ]
    missing = fuploader("find", "b.json")
    assert missing.code == 4
    assert "no message, archive or dead letter of docs is known here as b.json" in missing.err
    (tmp_path / "data" / "docs" / "catalog.sqlite").write_bytes(b"broken" * 1000)
    broken = fuploader("find", "a.json")
    assert (broken.code, broken.lines) == (4, lines)  # of recent archives this disk knows itself
    assert "catalog rebuild --anew" in broken.err
    rebuilt = fuploader("catalog", "rebuild", "--anew", "--json")
    assert rebuilt.code == 0
    assert json.loads(rebuilt.out)["added"] == 2
    assert fuploader("find", "a.json").lines == lines


def test_find_shows_a_message_that_is_not_stored_yet_and_one_that_is_a_dead_letter(
    fuploader: Fuploader, tmp_path: Path
) -> None:
    sinks = {"rows": {"kind": "sql", "url": f"sqlite:///{tmp_path}/no/r.sqlite", "table": "t"}}
    configure(tmp_path, sinks=sinks)
    (settings,) = load_pipelines(tmp_path / "fuploader.yaml").values()
    with SlotOwner(settings, 0) as writer:
        writer.add("a.json", b"[]")
        writer.commit()
        (line,) = fuploader("find", "a.json").lines
        assert line == "a.json  -  -  in slot 0, directory 1, not sealed yet"
        slot = writer.seal("request")
    assert slot is not None
    first, second = fuploader("find", "a.json").lines
    assert first.split()[2] == slot.seal.partition
    assert first.endswith("sealed in slot 0, directory 1")
    assert second == "    sink rows: waiting"
    list(ship(settings, settings.store.open()))
    first, second = fuploader("find", "a.json").lines
    assert first.split()[3].startswith("file://")
    assert second.startswith("    sink rows: owed, failed ")
    box = DeadLetterBox(settings.layout, 0)
    message = Message(b"\x1b[31m", 1, False, "id-1")
    box.keep([box.letter(message, BadMessage("\x1b[31m no"), lambda _: {})])
    answer = fuploader("find", "id-1")
    assert answer.code == 0
    assert answer.lines[0].startswith("dead letter ")
    assert answer.lines[0].endswith("  drain  waits: \\x1b[31m no")
    (found,) = [json.loads(line) for line in fuploader("find", "id-1", "--json").lines]
    assert (found["state"], found["reason"], found["waits"]) == ("dead letter", "\x1b[31m no", True)
    (found,) = [json.loads(line) for line in fuploader("find", "a.json", "--json").lines]
    assert set(found) == {
        *("name", "pipeline", "state", "node", "sealed_at", "partition", "slot", "directory"),
        *("address", "key", "member", "stored_at", "current", "size_bytes", "sha256", "results"),
        *("redo", "trouble", "sinks"),
    }
    assert found["sinks"]["rows"]["state"] == "owed"
