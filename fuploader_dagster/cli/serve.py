"""The command `serve`: the HTTP front door of the pipelines that say `serve`."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fuploader_dagster.cli import console
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.front.app import Front
from fuploader_dagster.front.server import Address
from fuploader_dagster.front.server import serve as serve_until_stopped
from fuploader_dagster.processing.cores import available_cores
from fuploader_dagster.settings.logs import log_as


def serve(
    *,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine.")
    ] = Address.host,
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = Address.port,
    workers: Annotated[
        int,
        typer.Option(help="Number of processes; 0: one per core that this one may use.", min=0),
    ] = 0,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate file (PEM), for HTTPS without a proxy.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The certificate's key file (PEM).")] = None,
    root_path: Annotated[
        str, typer.Option(help="Start of all paths that a proxy in front cuts off: /queue")
    ] = Address.root_path,
    trusted_proxies: Annotated[
        str,
        typer.Option(help="Addresses of proxies whose X-Forwarded headers are believed."),
    ] = Address.trusted_proxies,
    config: console.ConfigOption = None,
) -> None:
    """Serve the pipelines that say `serve` over HTTP, until SIGTERM or Ctrl-C.

    Takes messages and confirms them, says where they are, and pauses and resumes. Clients need a
    token: set FUPLOADER_SERVE_TOKEN, or name variables in the settings.
    """
    log_as("serve")
    if root_path and (not root_path.startswith("/") or root_path.endswith("/")):
        raise ConfigError(
            f"--root-path {root_path} must begin with / and not end with it", hint="such as /queue"
        )
    address = Address(host, port, tls_cert, tls_key, root_path, trusted_proxies)
    front = Front(console.configured(config), os.environ)
    workers = workers or available_cores()
    file, module = console.configuration_file(config), console.chosen_module(config)
    make = partial(_made, file, module) if workers > 1 else lambda: front

    def listening() -> None:
        console.say(f"serving {', '.join(front.served)} at {address.url}{root_path}")
        console.say("Ctrl-C answers what is in work, then stops.")

    serve_until_stopped(address, workers, make, listening=listening)


def _made(config: Path | None, module: str | None) -> Front:
    """The application, in a process of its own."""
    log_as("serve")
    if module or config:
        console.choose(config, module)
    return Front(console.configured(None), os.environ)
