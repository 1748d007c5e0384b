"""Where FUploader kept the data that `fuploader migrate` takes over."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from fuploader_dagster.contracts.settings import Settings
from fuploader_dagster.settings.secret import Secret


class Takeover(Settings):
    """Where FUploader kept the data to take over. The defaults fit a pipeline that uses the same
    storage root and Redis, and has the name of FUploader's task."""

    enabled: bool = True
    """If true, the pipeline refuses to start while FUploader's data is in its folder or Redis,
    until `fuploader migrate` has taken it over. If false, it does not check."""
    root: Annotated[Path, AfterValidator(Path.expanduser)] | None = None
    """FUploader's `storage_root`. By default, that of this pipeline."""
    task_name: str | None = None
    """FUploader's `task_name`, which starts its keys of style `legacy_meta`. By default, the name
    of this pipeline."""
    node_id: str | None = None
    """FUploader's `node_id`. By default that of this pipeline, or else the one that FUploader makes
    from the machine's address."""
    key_prefix: str = "file_uploader:"
    """FUploader's `key_prefix`, which starts its keys of style `default`."""
    redis_url: Secret | None = None
    """FUploader's Redis, if it is not the one that holds this pipeline's state."""
    stored_below: str | None = None
    """Prefix of the object keys of FUploader's archives. By default, that of this pipeline's
    keys."""
