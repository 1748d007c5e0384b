"""Runs of pipelines without the seconds that starting one takes. Chosen in dagster.yaml:

    run_launcher:
      module: fuploader_dagster.warm_runs
      class: WarmRunLauncher

It uses private names of Dagster (`dagster_internals`). With a version of Dagster that was not
tested it is Dagster's default launcher.
"""

from __future__ import annotations

from dagster import DefaultRunLauncher

from fuploader_dagster.dagster_internals import replacement_of

WarmRunLauncher = replacement_of(DefaultRunLauncher, "warm_runs", "WarmRunLauncher")
