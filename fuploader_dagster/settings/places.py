"""Where a configuration is looked for: names that are needed before it is loaded."""

from __future__ import annotations

CONFIG_VARIABLE = "FUPLOADER_CONFIG"
DEFAULT_FILE = "fuploader.yaml"
MODULE_VARIABLE = "FUPLOADER_MODULE"
