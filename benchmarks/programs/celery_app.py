"""The functions of `work` as a Celery task, over the broker in BENCH_CELERY.

Its defaults, but for more messages in advance than 4, so that no process waits for the broker.
"""

from __future__ import annotations

import os

from celery import Celery

from benchmarks.programs.work import BROKER_VARIABLE, FUNCTIONS

app = Celery("bench", broker=os.environ[BROKER_VARIABLE], backend="rpc://")
app.conf.update(worker_prefetch_multiplier=64, broker_connection_retry_on_startup=True)


@app.task
def work(function: str, content: str) -> str:
    return FUNCTIONS[function](content.encode()).decode()
