"""Sinks: tables of SQL databases."""
