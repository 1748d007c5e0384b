"""The client library: how it is loaded and configured, and what its errors mean.

What must always hold: the library is loaded at the first use, so that a pipeline without Kafka does
not need it. What passes by itself becomes a `TemporaryError`, what needs a person a
`PermanentError`. The library writes nothing to the standard output or error.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from fuploader_dagster.errors import (
    ConfigError,
    FuploaderError,
    SourceRefused,
    SourceUnavailable,
)

if TYPE_CHECKING:
    from fuploader_dagster.resources.sources.kafka.settings import Kafka

PAGE = "docs/kafka.md"
REBALANCING = {"REBALANCE_IN_PROGRESS", "ILLEGAL_GENERATION", "UNKNOWN_MEMBER_ID"}
"""The group is handing out its partitions; what was tried can be tried again after that."""
_NO_ONE_ANSWERS = "check that a broker listens at an address in bootstrap_servers, with or without "
_RIGHTS = f"give this user the rights listed in {PAGE}"
_REFUSED = {
    "_AUTHENTICATION": "check user, password and sasl_mechanism",
    "SASL_AUTHENTICATION_FAILED": "check user, password and sasl_mechanism",
    "UNSUPPORTED_SASL_MECHANISM": "set another sasl_mechanism",
    "TOPIC_AUTHORIZATION_FAILED": _RIGHTS,
    "GROUP_AUTHORIZATION_FAILED": _RIGHTS,
    "CLUSTER_AUTHORIZATION_FAILED": _RIGHTS,
    "UNKNOWN_TOPIC_OR_PART": "create the topic, or set declare: true; is its name right?",
    "_UNKNOWN_TOPIC": "create the topic, or set declare: true; is its name right?",
    "TOPIC_EXCEPTION": "name another topic",
    "FENCED_INSTANCE_ID": "another worker has the same name: give each machine a node_id of its "
    "own, and each pipeline a group of its own",
    "INCONSISTENT_GROUP_PROTOCOL": "another program is in this group: set a group that only this "
    "pipeline uses",
    "INVALID_SESSION_TIMEOUT": "set session_timeout_seconds within the broker's limits "
    "(group.min.session.timeout.ms, group.max.session.timeout.ms)",
    "INVALID_REPLICATION_FACTOR": "create the topic by hand",
}
"""Name of an error that needs a person, and what to do."""
_TLS_REFUSED = ("certificate verify failed", "wrong version number", "ssl.ca.location", "PEM")


def library() -> Any:
    """The module `confluent_kafka`."""
    try:
        import confluent_kafka  # noqa: PLC0415
        import confluent_kafka.admin  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            "a Kafka queue needs the package confluent-kafka, which is not installed",
            hint="pip install 'fuploader-dagster[kafka]'",
        ) from error
    return confluent_kafka


def configuration(settings: Kafka, **more: Any) -> dict[str, Any]:
    """Settings of any client of the library. `more` has underscores in place of dots."""
    chosen: dict[str, Any] = {
        "bootstrap.servers": settings.bootstrap_servers,
        "client.id": f"fuploader-{settings.group}",
        "socket.timeout.ms": round(settings.timeout_seconds * 1000),
        "socket.connection.setup.timeout.ms": round(settings.timeout_seconds * 1000),
        "reconnect.backoff.max.ms": 1_000,
        "log_level": 0,
        "logger": _nowhere(),
        "security.protocol": ("SASL_" if settings.sasl_mechanism else "")
        + ("SSL" if settings.tls else "PLAINTEXT"),
        **{name.replace("_", "."): value for name, value in more.items()},
    }
    if settings.tls:
        chosen["ssl.ca.location"] = str(settings.ca_file or "probe")
    for name, value in (
        ("ssl.certificate.location", settings.cert_file),
        ("ssl.key.location", settings.key_file or settings.cert_file),
        ("ssl.key.password", settings.key_password and settings.key_password.get_secret_value()),
        ("sasl.mechanism", settings.sasl_mechanism),
        ("sasl.username", settings.user),
        ("sasl.password", settings.password and settings.password.get_secret_value()),
    ):
        if value is not None:
            chosen[name] = str(value)
    return chosen


def explained(tried: str, settings: Kafka, error: Any) -> FuploaderError:
    """Our error for one of the library's (a `KafkaError`, or an exception that carries one)."""
    if isinstance(error, FuploaderError):
        return error
    if isinstance(error, Exception) and error.args and hasattr(error.args[0], "name"):
        error = error.args[0]
    if not hasattr(error, "name"):
        return SourceUnavailable(f"could not {tried} {settings.describe()}: {error}")
    name, reason = error.name(), error.str()
    what = f"could not {tried} {settings.describe()}: {reason} ({name})"
    if name == "_FATAL" and "fenced" in reason.lower():
        name = "FENCED_INSTANCE_ID"
    if name in _REFUSED:
        return SourceRefused(what, hint=_REFUSED[name])
    if any(one in reason for one in _TLS_REFUSED):
        hint = "check tls, ca_file, cert_file and key_file: the broker's port speaks TLS or not"
        return SourceRefused(what, hint=hint)
    if name == "_MAX_POLL_EXCEEDED":
        hint = "nothing is lost; if parsers take so long, raise max_poll_interval_seconds"
        return SourceUnavailable(what, hint=hint)
    secured = "TLS as set in tls"
    return SourceUnavailable(what, hint=f"nothing is lost; {_NO_ONE_ANSWERS}{secured}")


def _nowhere() -> logging.Logger:
    """A log that nobody reads: what the library says reaches ours as errors. Without it, fatal
    errors would be printed."""
    logger = logging.getLogger(f"{__name__}.librdkafka")
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    return logger


class Troubles:
    """What the library reports by itself: whether it is worth waiting for an answer.

    It reconnects for ever, so a refused login and brokers that are all down are noticed here.
    """

    def __init__(self, settings: Kafka) -> None:
        self._settings = settings
        self._last: Any = None
        self._reason: Any = None
        self._down = False

    def __call__(self, error: Any) -> None:
        """Called by the library, in whichever thread asks it for something."""
        if error.fatal() or error.name() in _REFUSED or _speaks_of_tls(error):
            self._last = error
        elif error.name() != "_ALL_BROKERS_DOWN":
            self._reason = error
        elif self._last is None and (self._reason is not None or self._down):
            self._last = self._reason or error
        else:
            self._down = True  # why may come in a moment

    def raise_any(self, tried: str) -> None:
        if self._last is not None:
            last, self._last = self._last, None
            raise explained(tried, self._settings, last)


def _speaks_of_tls(error: Any) -> bool:
    return error.name() == "_SSL" and any(one in error.str() for one in _TLS_REFUSED)
