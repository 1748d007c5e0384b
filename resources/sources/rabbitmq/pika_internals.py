"""Private names of pika, each with what we do where a pika lacks it.

Tested with pika 1.3.2 to 1.4.4. With another version one warning is logged per process, and what
needs a missing name takes the slower public way (`deliveries`, which needs most of them, too).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ConnectionWrongStateError, StreamLostError

_TESTED = ((1, 3, 2), (1, 4, 4))

log = logging.getLogger(__name__)


@cache
def warn_if_untested() -> None:
    """Log once that this version of pika was not tested."""
    numbers = tuple(int(one) for one in pika.__version__.split(".")[:3] if one.isdecimal())
    if not _TESTED[0] <= numbers <= _TESTED[1]:
        log.warning(
            "pika %s was not tested with this program: if receiving or publishing is slow or "
            "fails, install pika 1.3.2 to 1.4.4",
            pika.__version__,
        )


def impl(wrapper: Any, *needed: str) -> Any:
    """What a blocking connection or channel wraps; None if it lacks one of the `needed` names."""
    wrapped = getattr(wrapper, "_impl", None)
    return wrapped if all(hasattr(wrapped, name) for name in needed) else None


def end_unless_answered(connection: pika.BlockingConnection, seconds: float) -> None:
    """Let the connection end by itself if the broker does not answer its closing in time.

    The timers of what it wraps fire while `close` waits, unlike its own.
    """
    wrapped = impl(connection, "_adapter_call_later", "_terminate_stream")
    if wrapped is not None:
        no_answer = StreamLostError(f"no answer to our goodbye within {seconds:g} s")
        wrapped._adapter_call_later(seconds, lambda: wrapped._terminate_stream(no_answer))


def closing_reason(channel: BlockingChannel) -> Exception:
    """Why a channel is closed. pika keeps the reason, but shows it only to calls that wait."""
    reason: object = getattr(channel, "_closing_reason", None)
    return reason if isinstance(reason, Exception) else ConnectionWrongStateError("closed")


def server_version(connection: pika.BlockingConnection) -> str:
    """The broker's version as it states it; empty if it does not."""
    properties = getattr(impl(connection), "server_properties", None) or {}
    version = properties.get("version", b"")
    return version.decode("ascii", "replace") if isinstance(version, bytes) else str(version)


def largest_frame(connection: pika.BlockingConnection) -> int:
    """The bytes of a frame that were agreed on; 0: no limit."""
    parameters = getattr(impl(connection), "params", None)
    return int(getattr(parameters, "frame_max", pika.spec.FRAME_MAX_SIZE))


def confirm_without_waiting(
    channel: BlockingChannel,
    on_confirmed: Callable[[Any], None],
    on_selected: Callable[[Any], None],
) -> bool:
    """Have confirms come as callbacks, for what `send` sends; False if `basic_publish` has to be
    used, which waits for each."""
    wrapped = impl(channel, "confirm_delivery")
    if wrapped is None or impl(channel.connection, "_output_marshaled_frames") is None:
        channel.confirm_delivery()
        return False
    wrapped.confirm_delivery(on_confirmed, callback=on_selected)
    return True


def send(connection: pika.BlockingConnection, pieces: Sequence[bytes]) -> None:
    """Put pieces of frames into the connection's buffer. Each is given to the socket as a whole."""
    impl(connection)._output_marshaled_frames(pieces)
