"""Whether the daemon evaluates a sensor or schedule, or a person only tests it.

"Test sensor" and "Preview tick result" in Dagster's UI, and `dagster sensor preview`, call the same
function as a tick, whether the sensor is on or off. They should say what a tick would do, and do
none of it: drain nothing, seal nothing, remove nothing.

How it is known: the daemon makes a row for each tick first, and the key of the tick's log ends in
the row's number. A test by hand has no row, and Dagster puts the time there.
"""

from __future__ import annotations

import dagster as dg

SAID = "this is a test by hand, which changes nothing"


def is_dry_run(context: dg.SensorEvaluationContext | dg.ScheduleEvaluationContext) -> bool:
    """Whether a person only tests what a tick would do. A plain call from Python does not count."""
    key = context.log_key
    return key is not None and len(key) > 0 and not key[-1].isdecimal()
