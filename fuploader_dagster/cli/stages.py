"""Commands that run one stage of a pipeline without Dagster: `drain`, `seal`, `ship`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Annotated

import typer

from fuploader_dagster.cli import console
from fuploader_dagster.cli.exit_codes import REFUSED
from fuploader_dagster.cli.words import counted
from fuploader_dagster.delivery import recovery
from fuploader_dagster.delivery.all_rows import AllRows
from fuploader_dagster.delivery.attempts import Failed
from fuploader_dagster.delivery.failures import all_failures
from fuploader_dagster.delivery.ship import ship as ship_sealed
from fuploader_dagster.errors import Paused
from fuploader_dagster.intake.leftovers import refuse_leftovers
from fuploader_dagster.settings.logs import log_as
from fuploader_dagster.settings.pipeline import Pipeline
from fuploader_dagster.slots.sealing import SealedSlot, sealed_partitions
from fuploader_dagster.standalone import (
    drain_pipeline,
    refuse_while_paused,
    run_pipeline,
    ship_pipeline,
)

log = logging.getLogger(__name__)

ShipOption = Annotated[
    bool, typer.Option("--ship", help="Also process, pack and upload each slot when it is sealed.")
]
PauseOption = Annotated[
    bool, typer.Option("--despite-pause", help="Do it also while somebody has paused the pipeline.")
]


def drain(
    config: console.ConfigOption = None,
    pipeline_name: console.PipelineOption = None,
    ship_too: ShipOption = False,
    despite_pause: PauseOption = False,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port",
            min=1,
            max=65535,
            help="Serve metrics for Prometheus at this port. Default: metrics_port.",
        ),
    ] = None,
) -> None:
    """Run the drain workers of a pipeline without Dagster, until SIGTERM or Ctrl-C.

    With residue_file_upload everything that is left is then sealed, packed and uploaded. While the
    pipeline is paused (`fuploader pause`), workers wait and take no messages, and nothing is
    shipped.
    """
    log_as("drain")
    pipeline = console.one_pipeline(config, pipeline_name)
    if metrics_port or pipeline.metrics_port:
        from fuploader_dagster.health.metrics_port import offer_metrics  # noqa: PLC0415  few ask

        offer_metrics(pipeline, metrics_port)
    if ship_too:
        run_pipeline(pipeline, despite_pause=despite_pause)
        if pipeline.residue_file_upload and any(all_failures(pipeline.layout)):  # which is logged
            raise typer.Exit(REFUSED)
        return
    drain_pipeline(pipeline, despite_pause=despite_pause)
    if not pipeline.residue_file_upload:
        return
    try:
        shipped = ship_pipeline(pipeline, despite_pause=despite_pause)
    except Paused as error:
        log.warning("what is sealed stays on the disk: %s", error)
    else:
        if shipped.failures:  # which it has logged
            raise typer.Exit(REFUSED)


def seal(config: console.ConfigOption = None, pipeline_name: console.PipelineOption = None) -> None:
    """Seal all active slots now, however full they are."""
    pipeline = console.one_pipeline(config, pipeline_name)
    sealed = recovery.seal_on_request(pipeline)
    hand_over(pipeline, sealed)
    console.say(
        f"sealed {counted(len(sealed), 'slot')}; running workers seal theirs within a second"
    )


def hand_over(pipeline: Pipeline, sealed: Sequence[SealedSlot]) -> None:
    """List slots in the state store, where the drain sensor looks for them."""
    with pipeline.state.opened(pipeline=pipeline.name, node=pipeline.node) as state:
        state.add_sealed([slot.seal.partition for slot in sealed])


def ship(
    config: console.ConfigOption = None,
    pipeline_name: console.PipelineOption = None,
    despite_pause: PauseOption = False,
) -> None:
    """Pack and upload all sealed slots now, and store their rows in the sinks, without Dagster.

    While the shipping is paused (`fuploader pause`) it refuses, with exit code 3.
    """
    pipeline = console.one_pipeline(config, pipeline_name)
    refuse_leftovers(pipeline)
    if not despite_pause:
        refuse_while_paused(pipeline)
    failed = False
    rows = AllRows(pipeline, patient=False)
    with console.counting() as progress:
        task = progress.add_task("shipping", total=len(sealed_partitions(pipeline.layout)))
        for outcome in ship_sealed(pipeline, pipeline.store.open(), rows):
            progress.advance(task)
            if isinstance(outcome, Failed):
                failed = True
                console.complain(
                    f"{outcome.partition} was not shipped and is kept: {outcome.error}"
                )
    for sentence in rows.failures:
        console.complain(f"not stored: {sentence}")
    if pipeline.sinks:
        console.say(f"stored {counted(rows.stored, 'row')}")
    if failed or rows.failures:
        raise typer.Exit(REFUSED)
