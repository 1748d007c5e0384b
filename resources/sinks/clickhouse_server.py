"""One client of a ClickHouse server, by HTTP. Calls end with a result or with an error of ours.

What must always hold: each call ends within the timeout, and no error refers to the driver's, which
may quote values. Nothing that changes data is sent twice by one call.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import SplitResult, unquote

import zstandard

from fuploader_dagster.errors import ConfigError, FuploaderError
from fuploader_dagster.resources.sinks.clickhouse_errors import (
    NO_ANSWER,
    NO_TLS,
    NOT_TRUSTED,
    Meaning,
    explained,
    meaning,
)

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

Value = TypeVar("Value")
_MOST_SECONDS_TO_CONNECT = 10.0
_PORTS = {"http": 8123, "https": 8443}


class Server:
    """Connects at the first call, and again after `close`."""

    def __init__(
        self, url: SplitResult, *, ca_file: str | None, timeout_seconds: float, where: str
    ) -> None:
        """`where`: the server in messages, without a login."""
        self._url, self._ca_file = url, ca_file
        self._timeout_seconds, self.where = timeout_seconds, where
        self._client: Client | None = None

    @property
    def database(self) -> str | None:
        """The one in the url, if it has one."""
        return unquote(self._url.path.strip("/")) or None

    def query(
        self, statement: str, trying: str, parameters: Mapping[str, Any] | None = None
    ) -> list[tuple[Any, ...]]:
        """The rows of an answer that is small. `trying` starts the message of an error."""
        found = self._called(
            lambda client: client.query(statement, parameters=dict(parameters or {})), trying
        )
        return [tuple(row) for row in found.result_rows]

    def command(
        self, statement: str, trying: str, parameters: Mapping[str, Any] | None = None
    ) -> None:
        """A statement that changes something."""
        settings = {"max_execution_time": self._most_seconds}
        self._called(
            lambda client: client.command(
                statement, parameters=dict(parameters or {}), settings=settings
            ),
            trying,
        )

    def insert(
        self,
        table: str,
        columns: Sequence[str],
        blocks: Callable[[], Iterator[bytes]],
        settings: Mapping[str, Any],
        trying: str,
    ) -> None:
        """One INSERT of blocks in the format Native. `table` is quoted already."""
        every = {"max_execution_time": self._most_seconds, "wait_end_of_query": 1, **settings}
        self._called(
            lambda client: client.raw_insert(
                table,
                column_names=columns,
                insert_block=_compressed(blocks()),
                settings=every,
                fmt="Native",
                compression="zstd",
            ),
            trying,
        )

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with suppress(OSError):
                client.close()

    @property
    def _most_seconds(self) -> int:
        return max(1, int(self._timeout_seconds))

    def _called(self, call: Callable[[Client], Value], trying: str) -> Value:
        found: Meaning
        failure: FuploaderError | None = None
        try:
            if self._client is None:
                self._client = self._connected()
            return call(self._client)
        except FuploaderError as error:
            failure = error
        except Exception as error:  # noqa: BLE001  told below, without its text
            found = _meaning_of(error)
        if failure is not None:
            raise failure
        self.close()
        raise explained(found, f"{trying} at {self.where}")

    def _connected(self) -> Client:
        try:
            import clickhouse_connect  # noqa: PLC0415  an extra
        except ImportError as error:
            raise ConfigError(
                f"ClickHouse needs clickhouse-connect, which cannot be imported: {error}",
                hint="pip install 'fuploader-dagster[clickhouse]'",
            ) from error
        if self._ca_file is not None and not Path(self._ca_file).is_file():
            raise ConfigError(
                f"could not read ca_file {self._ca_file}: no such file",
                hint="it is the file of a certificate authority, in PEM format",
            )
        url = self._url
        return clickhouse_connect.get_client(
            interface=url.scheme,
            host=url.hostname,
            port=url.port or _PORTS[url.scheme],
            username=unquote(url.username) if url.username else None,
            password=unquote(url.password or ""),
            database=self.database,
            ca_cert=self._ca_file,
            connect_timeout=min(self._timeout_seconds, _MOST_SECONDS_TO_CONNECT),
            send_receive_timeout=self._timeout_seconds,
            autogenerate_session_id=False,  # several processes may use one login
            dedicated_pool=True,
            compress=False,
            client_name="fuploader-dagster",
        )


def _compressed(blocks: Iterator[bytes]) -> Generator[bytes, None, None]:
    compressor = zstandard.ZstdCompressor(level=1).compressobj()
    for block in blocks:
        if piece := compressor.compress(block):
            yield piece
    yield compressor.flush()


def _meaning_of(error: BaseException) -> Meaning:
    code, name = getattr(error, "code", None), getattr(error, "name", None)
    if isinstance(code, int):
        return meaning(code, name)
    causes: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in causes:
        causes.append(one)
        reason = getattr(one, "reason", None)  # of urllib3's errors
        one = (
            one.__cause__
            or one.__context__
            or (reason if isinstance(reason, BaseException) else None)
        )
    if any(isinstance(one, ssl.SSLCertVerificationError) for one in causes):
        return NOT_TRUSTED
    return NO_TLS if any(isinstance(one, ssl.SSLError) for one in causes) else NO_ANSWER
