"""The server's processes: uvicorn, with one process or several on one port.

What must always hold:

- The port is taken, and the application made, before any process starts: what is wrong is said in
  a sentence, once.
- SIGTERM and Ctrl-C stop it cleanly: no new request is taken, those in work are answered.
- No process outlives the one that started it.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.supervisors import Multiprocess

from fuploader_dagster.errors import ConfigError
from fuploader_dagster.front.app import Front
from fuploader_dagster.front.connection import Connection

log = logging.getLogger(__name__)

LONGEST_ENDING_SECONDS = 45
"""Longer than any request may take by its settings' defaults."""
KEEP_ALIVE_SECONDS = 75
"""Longer than the 60 s after which most proxies close an idle connection themselves."""
SILENT_SECONDS = 60
"""A server process that says nothing for this long is replaced. On a busy machine starting takes
more than the 5 s that uvicorn allows: it would kill each one before it serves, for ever."""
_LOOK_AT_PARENT_SECONDS = 1.0


@dataclass(frozen=True)
class Address:
    """Where to listen, and what is in front."""

    host: str = "127.0.0.1"
    port: int = 8080
    tls_cert: Path | None = None
    tls_key: Path | None = None
    root_path: str = ""
    """What a proxy in front cuts from the start of each path."""
    trusted_proxies: str = "127.0.0.1,::1"
    """Whose forwarded headers are believed."""

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls_cert else 'http'}://{host}:{self.port}"


def serve(
    address: Address,
    workers: int,
    make: Callable[[], Front],
    *,
    listening: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGTERM or Ctrl-C. `make` is called in each process, and must be picklable.

    `listening` is called once the port is ours. Raises `ConfigError` if the port or the certificate
    cannot be used.
    """
    _check_tls(address)
    with _listening(address) as listener:
        listening()
        config = uvicorn.Config(
            _Made(make, os.getpid()) if workers > 1 else make(),
            workers=workers,
            http=Connection,
            lifespan="on",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            root_path=address.root_path,
            forwarded_allow_ips=address.trusted_proxies,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=LONGEST_ENDING_SECONDS,
            timeout_worker_healthcheck=SILENT_SECONDS,
            ssl_certfile=address.tls_cert,
            ssl_keyfile=address.tls_key,
            factory=workers > 1,
        )
        if workers > 1:
            Multiprocess(config, sockets=[listener]).run()
            return
        # uvicorn raises the signal again when everything is answered.
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, _already_obeyed)
        uvicorn.Server(config).run(sockets=[listener])


class _Made:
    """Makes the application in a process of its own, which ends when its parent does."""

    def __init__(self, make: Callable[[], Front], parent: int) -> None:
        self._make = make
        self._parent = parent

    def __call__(self) -> Front:
        threading.Thread(target=self._watch, name="parent", daemon=True).start()
        return self._make()

    def _watch(self) -> None:
        gone = threading.Event()
        while os.getppid() == self._parent:
            gone.wait(_LOOK_AT_PARENT_SECONDS)
        log.warning("the process that started this server process is gone: it ends too")
        os.kill(os.getpid(), signal.SIGTERM)


def _already_obeyed(*_: Any) -> None:
    """uvicorn stopped for this signal."""


def _listening(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address.host, address.port))
        listener.listen(2048)
    except (OSError, ValueError, TypeError) as error:  # a name that cannot be one
        listener.close()
        used = getattr(error, "errno", None) == errno.EADDRINUSE
        raise ConfigError(
            f"cannot listen on {address.host}, port {address.port}: "
            f"{getattr(error, 'strerror', None) or error}",
            hint="another program uses this port: choose another one with --port"
            if used
            else "choose an address of this machine with --host, and a port above 1023 with --port",
        ) from None
    listener.set_inheritable(True)
    return listener


def _check_tls(address: Address) -> None:
    if address.tls_cert is None and address.tls_key is None:
        return
    if address.tls_cert is None:
        raise ConfigError("there is a --tls-key, but no --tls-cert", hint="give both")
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(address.tls_cert, address.tls_key, password=_no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(
            f"the certificate {address.tls_cert} or its key cannot be used: "
            f"{getattr(error, 'strerror', None) or error}",
            hint="give files in PEM form, the key without a password",
        ) from None


def _no_password() -> str:
    raise ValueError("the key has a password")
