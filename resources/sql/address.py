"""Addresses of databases, as settings have them: which dialect, and what may be shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa
from pydantic import SecretStr
from sqlalchemy.exc import SQLAlchemyError

from fuploader_dagster.contracts.relative_paths import placed
from fuploader_dagster.resources.sql.dialect import Dialect
from fuploader_dagster.resources.sql.mysql import Mysql
from fuploader_dagster.resources.sql.postgresql import Postgresql
from fuploader_dagster.resources.sql.sqlite import Sqlite
from fuploader_dagster.settings.secret import place_of_unset

DIALECTS: Sequence[type[Dialect]] = (Postgresql, Mysql, Sqlite)


def usable_url(url: SecretStr) -> SecretStr:
    """The same; a file's path, if it is relative, as other paths of the settings are. Raises
    `ValueError`, which does not quote it."""
    if place_of_unset(url):
        return url
    try:
        parsed = sa.make_url(url.get_secret_value())
        kind = _kind_of(parsed)
    except (SQLAlchemyError, ValueError):  # not passed on, because it may quote the password
        kind = None
    if kind is None or not parsed.database:
        raise ValueError(
            "url must look like postgresql://user:password@host/database, mysql://..., "
            "mariadb://... or sqlite:////path/of/the/file"
        )
    if kind.is_a_file and not parsed.database.startswith((":", "file:")):
        file = parsed.set(database=str(placed(Path(parsed.database))))
        return SecretStr(file.render_as_string(hide_password=False))
    return url


def dialect_of(url: sa.URL) -> type[Dialect]:
    """Of a url that was found usable."""
    kind = _kind_of(url)
    assert kind is not None  # noqa: S101 - the validator has seen to it
    return kind


def shown_address(url: sa.URL) -> str:
    """Without login and options."""
    host = f"{url.host or ''}{f':{url.port}' if url.port else ''}"
    return f"{url.drivername.partition('+')[0]}://{host}/{url.database}"


def _kind_of(url: sa.URL) -> type[Dialect] | None:
    return next((one for one in DIALECTS if url.drivername in one.schemes), None)
