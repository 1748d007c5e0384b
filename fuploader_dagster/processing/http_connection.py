"""Connecting to a handler behind HTTP: TLS, what its errors mean, and the look of the doctor.

Used by the calls (`http_calls`) and by `HttpHandler.examine`, so both trust the same certificates.
"""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

from fuploader_dagster.errors import ConfigError, ProcessorUnavailable
from fuploader_dagster.settings.safe_text import in_a_line

if TYPE_CHECKING:
    from fuploader_dagster.processing.http import HttpHandler

_LONGEST_EXAMINATION_SECONDS = 10.0
_REFUSED_BY_TLS_SECONDS = 0.5


def tls_context(settings: HttpHandler) -> ssl.SSLContext:
    """What to trust, and our certificate. Raises `ConfigError`."""
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except (OSError, ValueError) as error:  # an ssl.SSLError is an OSError
        raise ConfigError(
            f"could not read ca_file {settings.ca_file} for {settings.describe()}: {error}",
            hint="it must be a PEM file with at least one certificate",
        ) from error
    if settings.cert_file is not None:
        try:
            context.load_cert_chain(settings.cert_file, settings.key_file, password="")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"could not read cert_file {settings.cert_file} and its key "
                f"{settings.key_file or settings.cert_file} for {settings.describe()}: {error}",
                hint="they must be PEM files, and the key without a password",
            ) from error
    return context


def reason_of(error: BaseException) -> str:
    """What the system says about a connection, without our part of the sentence."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not trusted: {error.verify_message or error}"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return str(error) or type(error).__name__


def connect_hint(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return "set ca_file to the certificate that signed the handler's"
    if isinstance(error, ssl.SSLError):
        return "check whether `url` has to begin with http:// or https://"
    return "check that the handler runs, and the host and port in `url`"


def try_to_connect(settings: HttpHandler) -> None:
    """Connect as a call would, and send nothing. Raises `ConfigError` or `ProcessorUnavailable`."""
    parts = settings.address()
    https = parts.scheme == "https"
    context = tls_context(settings) if https else None
    where = (parts.hostname or "", parts.port or (443 if https else 80))
    seconds = min(settings.timeout_seconds, _LONGEST_EXAMINATION_SECONDS)
    tried = f"could not connect to {settings.describe()}"
    try:
        with socket.create_connection(where, timeout=seconds) as connection:
            if context is not None:
                with context.wrap_socket(connection, server_hostname=where[0]) as wrapped:
                    _wait_for_refusal(wrapped)
    except _Refused as error:
        named = "cert_file is set, but does the handler trust it?"
        raise ConfigError(
            f"{tried}: it accepted no request: {in_a_line(str(error))}",
            hint=named if settings.cert_file else "if it asks for a certificate, set cert_file",
        ) from error
    except ssl.SSLError as error:
        raise ConfigError(
            f"{tried}: {in_a_line(reason_of(error))}", hint=connect_hint(error)
        ) from error
    except (OSError, UnicodeError) as error:
        raise ProcessorUnavailable(
            f"{tried}: {in_a_line(reason_of(error))}", hint=connect_hint(error)
        ) from error


class _Refused(Exception):
    """The other side ended a connection after its handshake."""


def _wait_for_refusal(connection: ssl.SSLSocket) -> None:
    """Raise `_Refused` if the other side does not like our certificate, or misses one.

    It says so, or just ends the connection, after the handshake is done on our side.
    """
    connection.settimeout(_REFUSED_BY_TLS_SECONDS)
    try:
        ended = not connection.recv(1)
    except TimeoutError:
        return  # it waits for a request
    except (ssl.SSLError, ConnectionError) as error:
        raise _Refused(reason_of(error)) from error
    if ended:
        raise _Refused("it ended the connection")
