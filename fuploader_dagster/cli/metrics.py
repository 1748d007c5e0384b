"""The command `metrics`: figures of the pipelines for Prometheus, once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fuploader_dagster.cli import console
from fuploader_dagster.disk.temporaries import temporary_file
from fuploader_dagster.errors import ConfigError
from fuploader_dagster.health.metrics import PipelineMetrics

_FOR_OTHERS = 0o644
"""node_exporter is another user. There is no message in it."""


def metrics(
    config: console.ConfigOption = None,
    pipeline_name: console.OnlyPipelineOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Replace this file, in one step, instead of printing: NAME.prom in the folder of "
            "node_exporter's textfile collector.",
        ),
    ] = None,
) -> None:
    """Print the metrics of the pipelines for Prometheus, or write them for node_exporter."""
    if output is not None and output.suffix != ".prom":
        raise ConfigError(
            f"{output} does not end with .prom, and node_exporter reads no other files",
            hint=f"--output {output.with_suffix('.prom')}",
        )
    text = PipelineMetrics(console.chosen_pipelines(config, pipeline_name)).text()
    if output is None:
        sys.stdout.buffer.write(text)
        return
    with temporary_file(output) as temporary:
        temporary.write_bytes(text)
        temporary.chmod(_FOR_OTHERS)
        temporary.replace(output)
