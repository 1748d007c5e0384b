"""Metrics on a port of this process: where its supervisor drains, or where somebody asks for it.

What must always hold: metrics never keep a drain from its work. A port that cannot be had is logged
once and tried again at the next call; who asks is answered by threads of their own.

One port serves all pipelines of the process that name it.
"""

from __future__ import annotations

import logging
import threading

from prometheus_client import CollectorRegistry, start_http_server

from fuploader_dagster.health.metrics import PipelineMetrics
from fuploader_dagster.settings.pipeline import Pipeline

log = logging.getLogger(__name__)

_Address = tuple[str, int]
_served: dict[_Address, PipelineMetrics] = {}
_complained: set[_Address] = set()
_lock = threading.Lock()


def offer_metrics(pipeline: Pipeline, port: int | None = None) -> bool:
    """Serve the metrics of a pipeline until this process ends, at this port or the one in its
    settings, if there is one. May be repeated. Returns whether they are served."""
    port = port or pipeline.metrics_port
    if port is None:
        return False
    address = (pipeline.metrics_host, port)
    with _lock:
        if address in _served:
            _served[address].add(pipeline)
            return True
        metrics = PipelineMetrics([pipeline])
        registry = CollectorRegistry(auto_describe=False)
        registry.register(metrics)
        try:
            start_http_server(port, address[0], registry)
        except OSError as error:
            if address not in _complained:
                log.warning(
                    "the metrics of %s are not served: %s:%d cannot be listened on (%s). Another "
                    "process may have that port (metrics_port)",
                    *(pipeline.name, *address, error.strerror or error),
                )
            _complained.add(address)
            return False
        _served[address] = metrics
        _complained.discard(address)
    log.info("metrics are at http://%s:%d/metrics", *address)
    return True
