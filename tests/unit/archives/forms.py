"""Members for the tests of all formats: what JSON can be, and what is none."""

from __future__ import annotations

import json
import random
from pathlib import Path

from fuploader_dagster.archives.writer import write_archive
from fuploader_dagster.contracts.object_store import ArchiveFile
from tests.unit.archives.archives import Headers, headers_for, payloads, segment

PRETTY = json.dumps({"id": 1, "list": [1, {"a": None}], "text": "ü\n"}, indent=2).encode()
ODD_CONTENTS = {
    "compact.json": b'{"id":1,"text":"x"}',
    "spaces.json": b' { "id" :  1 } ',
    "newline at the end.json": b'{"id":1}\n',
    "newlines at both ends.json": b'\n\n{"id":1}\n\n',
    "pretty.json": PRETTY,
    "returns.json": PRETTY.replace(b"\n", b"\r\n"),
    "tabs.json": b'{\t"id":\t1}',
    "duplicate keys.json": b'{"id":1,"id":2}',
    "numbers.json": b"[1.0,1.00,1e2,-0,1E+2,123456789012345678901234567890]",
    "infinite.json": b"[1e400]",
    "nan.json": b"[NaN]",
    "escapes.json": b'{"a":"\\u00e9\\/\\u0000","\\u0061":1}',
    "half a pair.json": b'"\\ud800"',
    "bom.json": b'\xef\xbb\xbf{"id":1}',
    "deep.json": b"[" * 100 + b"]" * 100,
    "too deep.json": b"[" * 101 + b"]" * 101,
    "far too deep.json": b"[" * 100_000 + b"]" * 100_000,
    "never closed.json": b"[" * 5000,
    "brackets in text.json": b'{"a":"' + b"[{" * 200 + b'","b":"\\\\\\"["}',
    "quotes.json": b'"' + b'\\"' * 20_000,
    "number.json": b"7",
    "null.json": b"null",
    "two values.json": b"{}{}",
    "text.txt": "Größe\n\u2028\0 消息".encode(),
    "controls.txt": bytes(range(32)) * 20,
    "binary.bin": bytes(range(256)),
    "base64 looks.txt": b"aGVsbG8=",
    "large.json": json.dumps([{"n": n, "text": "x" * (n % 50)} for n in range(40_000)]).encode(),
    "large.txt": b"some text\n" * 300_000,
    "results/1.json": b'{"result":1}',
}


def odd_contents() -> dict[str, bytes]:
    """All kinds of members, in an order that mixes them."""
    made = list((payloads(40) | ODD_CONTENTS).items())
    random.Random(3).shuffle(made)
    return dict(made)


def packed(
    folder: Path,
    form: str,
    contents: dict[str, bytes] | None = None,
    headers: Headers | None = None,
    *,
    frame_bytes: int = 0,
    threads: int = 1,
    sealed: bool = True,
    name: str = "a",
) -> ArchiveFile:
    """An archive of this format; by default of all kinds of members."""
    contents = odd_contents() if contents is None else contents
    headers = headers_for(contents) if headers is None else headers
    with segment(folder / "segment", contents, headers, sealed=sealed) as source:
        return write_archive(
            folder / f"{name}.{form}",
            source,
            form=form,
            frame_bytes=frame_bytes,
            threads=threads,
            metadata={"results": "0"},
        )
