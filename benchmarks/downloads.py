"""An origin of files (nginx), and downloads from it by a program of its own."""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.contenders import REPOSITORY
from benchmarks.ground import Ground
from benchmarks.processes import Program
from tests.servers.ports import LOOPBACK, free_port
from tests.servers.process import binary

_MOST_SECONDS = 1200.0
_READY_SECONDS = 60.0
_CONFIGURATION = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log; {user}
events {{ worker_connections 1024; }}
http {{
    access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;
    default_type application/octet-stream;
    client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
    uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
    server {{ listen {host}:{port}; root {folder}/www; limit_rate {rate}; }}
}}
"""


@dataclass(frozen=True)
class Files:
    """What the origin has."""

    number: int
    size_bytes: int
    rate: str = "0"
    """Bytes a second for each connection, as nginx writes them; 0 is no limit."""


@dataclass(frozen=True)
class DownloadRun:
    """The figures of one way."""

    seconds: float
    files_per_second: float
    mb_per_second: float
    cpu_ms_per_mb: float
    grown_mib: float
    last_over_first: float
    """Files a second in the last three tenths over those in the first three; 1 for another."""


@contextmanager
def origin(folder: Path, files: Files) -> Iterator[Path]:
    """A file with the addresses of all files of a server that runs meanwhile."""
    www, port = folder / "www", free_port()
    www.mkdir()
    body = os.urandom(files.size_bytes)
    for number in range(files.number):
        path = www / f"{number:06}.bin"
        path.write_bytes(number.to_bytes(8, "big") + body[8:])
    user = "user root;" if os.geteuid() == 0 else ""
    configuration = _CONFIGURATION.format(
        folder=folder, host=LOOPBACK, port=port, rate=files.rate, user=user
    )
    (folder / "nginx.conf").write_text(configuration)
    listed = folder / "list.txt"
    base = f"http://{LOOPBACK}:{port}"
    listed.write_text("".join(f"{base}/{n:06}.bin\n" for n in range(files.number)))
    command = [binary("nginx", package="nginx"), "-p", str(folder)]
    command += ["-c", str(folder / "nginx.conf")]
    with Program(command, env={}, cwd=folder, log=folder / "nginx.log") as program:
        _wait_for(f"{base}/000000.bin", program)
        yield listed


def downloaded(
    ground: Ground, listed: Path, files: Files, how: Literal["ours", "aria2c"], concurrency: int
) -> DownloadRun:
    """Measure one way once."""
    with ground.folder() as folder:
        out = folder / "out"
        out.mkdir()
        settings = {
            "how": how,
            "list": str(listed),
            "folder": str(out),
            "files": files.number,
            "concurrency": concurrency,
        }
        program = Program(
            [sys.executable, "-m", "benchmarks.programs.downloading"],
            env={"BENCH_SETTINGS": json.dumps(settings)},
            cwd=REPOSITORY,
            log=folder / "downloading.log",
        )
        with program:
            program.wait(_MOST_SECONDS)
        said = json.loads(program.log.read_text().splitlines()[-1])
    mb = files.number * files.size_bytes / 1e6
    rates = said["rates"]
    return DownloadRun(
        seconds=said["seconds"],
        files_per_second=files.number / said["seconds"],
        mb_per_second=mb / said["seconds"],
        cpu_ms_per_mb=said["cpu_seconds"] * 1000 / mb,
        grown_mib=said["grown_bytes"] / (1 << 20),
        last_over_first=sum(rates[-3:]) / sum(rates[:3]) if rates else 1.0,
    )


def _wait_for(url: str, program: Program) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        program.check()
        try:
            with urllib.request.urlopen(url) as answer:  # noqa: S310  our own server
                answer.read(1)
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
