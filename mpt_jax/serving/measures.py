"""What the server counts, as Prometheus reads it."""

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Measures:
    """Counters of one server; a process may have several servers, as tests do."""

    def __init__(self):
        self.registry = CollectorRegistry()
        told = {"registry": self.registry}
        self.requests = Counter("mpt_requests", "Requests by path and status", ["path", "status"], **told)
        self.seconds = Histogram("mpt_request_seconds", "Seconds until a request is answered", ["path"], buckets=SECONDS, **told)
        self.queries = Counter("mpt_queries", "Queries of requests that were answered, by kind", ["kind"], **told)
        self.waiting = Gauge("mpt_waiting_queries", "Queries that wait for a batch", **told)
        self.batch_rows = Histogram("mpt_batch_rows", "Queries of a batch", buckets=ROWS, **told)
        self.batch_seconds = Histogram("mpt_batch_seconds", "Seconds of a batch", buckets=SECONDS, **told)
        self.tasks = Gauge("mpt_tasks", "Tasks that can be asked for", **told)
        self.refused = Counter("mpt_refused_connections", "Connections closed before a request was read, by reason", ["reason"], **told)

    def text(self) -> bytes:
        """The text format of Prometheus."""
        return prometheus_client.generate_latest(self.registry)


CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
