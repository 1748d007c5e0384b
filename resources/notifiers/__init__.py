"""Notifiers: one file for each kind (`fuploader_dagster/contracts/notifier.py`)."""
