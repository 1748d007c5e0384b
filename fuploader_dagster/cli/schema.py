"""The command `schema`: what editors need to complete and check a configuration."""

from __future__ import annotations

import json
import sys


def schema() -> None:
    """Print the JSON Schema of fuploader.yaml, for editors.

    Write it beside the file, and name it in the file's first line:
    `# yaml-language-server: $schema=fuploader.schema.json`.
    """
    from fuploader_dagster.settings.schema import schema as made  # noqa: PLC0415  loads all kinds

    sys.stdout.write(json.dumps(made(), indent=1) + "\n")
