"""The commands `pause` and `resume`: what a pipeline does on all its nodes."""

from __future__ import annotations

import getpass
import socket
from pathlib import Path
from typing import Annotated

import typer

from fuploader_dagster.cli import console
from fuploader_dagster.control.wishes import PARTS, Part, Wished, wish

NameArgument = Annotated[
    str | None,
    typer.Argument(help="Name of the pipeline. May be left out if there is only one."),
]
ReasonOption = Annotated[str, typer.Option(help="Why, for everybody who meets the pause.")]
IntakeOption = Annotated[
    bool, typer.Option("--intake", help="Only the drain: no message is taken from the queue.")
]
ShippingOption = Annotated[
    bool, typer.Option("--shipping", help="Only processing, packing, uploads and sinks.")
]


def pause(
    name: NameArgument = None,
    reason: ReasonOption = "",
    intake: IntakeOption = False,
    shipping: ShippingOption = False,
    config: console.ConfigOption = None,
) -> None:
    """Pause a pipeline on all its nodes until `fuploader resume`, also across restarts.

    Workers commit what they have in hand, leave the queue within seconds and stay. No new run is
    asked for; running ones finish. Nothing is lost: messages wait in the queue, slots on the disk.
    """
    _wish(config, name, _parts(intake, shipping), paused=True, reason=reason)


def resume(
    name: NameArgument = None,
    reason: ReasonOption = "",
    intake: IntakeOption = False,
    shipping: ShippingOption = False,
    config: console.ConfigOption = None,
) -> None:
    """End a pause, whoever asked for it, on all nodes of the pipeline."""
    _wish(config, name, _parts(intake, shipping), paused=False, reason=reason)


def _parts(intake: bool, shipping: bool) -> tuple[Part, ...]:
    wanted = {"intake": intake, "shipping": shipping}
    return tuple(part for part in PARTS if wanted[part]) or PARTS


def _wish(
    config: Path | None, name: str | None, parts: tuple[Part, ...], *, paused: bool, reason: str
) -> None:
    pipeline = console.one_pipeline(config, name, option="by its name")
    done = wish(pipeline, parts, paused=paused, by=_who(), reason=reason)
    verb = "paused" if paused else "resumed"
    console.say(f"{pipeline.name}: {' and '.join(parts)} {verb}{_before(done, parts)}")
    if str(done.now):
        console.say(f"now {done.now}")
    if done.trouble:
        console.complain(done.trouble)


def _before(done: Wished, parts: tuple[Part, ...]) -> str:
    """What somebody else had wished, so that nobody undoes it unknowingly."""
    paused = [f"{part} {done.before.of(part)}" for part in parts if done.before.of(part).paused]
    return f"; it was paused before: {', '.join(paused)}" if paused else ""


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in some containers
        user = "somebody"
    return f"{user}@{socket.gethostname()}"
