"""Whether a sensor or schedule is evaluated by the daemon, or only tried by a person.

"Test sensor" and "Preview tick result" in Dagster's UI, and `dagster sensor preview`, call the
function that a tick calls, whether the sensor is on or off. They should tell what a tick would do,
and do none of it: drain nothing, seal nothing, remove nothing.

How it is known: the daemon makes a row for each tick first, and the key of the tick's log ends in
the row's number. Nobody made one for an evaluation by hand, and Dagster puts the time there.
"""

from __future__ import annotations

import dagster as dg

SAID = "this is a test by hand, which changes nothing"


def is_dry_run(context: dg.SensorEvaluationContext | dg.ScheduleEvaluationContext) -> bool:
    """Whether somebody looks what a tick would do. A plain call from Python is none."""
    key = context.log_key
    return key is not None and len(key) > 0 and not key[-1].isdecimal()
