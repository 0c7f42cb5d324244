"""What Prometheus is told: queues, workers, jobs, seconds, bytes. Nothing of whose they are."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from nnzoo.remote.server.workers import Staff

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
Counts = Callable[[], Mapping[str, tuple[int, Staff]]]  # of each model: jobs that wait, and its workers


class Metrics:
    """The figures of one server, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._jobs = Counter("nnzoo_jobs", "Jobs that ended", ["model", "status"], registry=self._registry)
        self._seconds = Histogram(
            "nnzoo_job_seconds",
            "From a job's coming to its answer",
            ["model"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self._bytes = Counter("nnzoo_bytes", "Bytes of requests and of answers", ["direction"], registry=self._registry)

    def watch(self, counts: Counts) -> None:
        """Ask for queues and workers whenever figures are asked for."""
        self._registry.register(_Now(counts))

    def ended(self, model: str, status: str, seconds: float) -> None:
        self._jobs.labels(model, status).inc()
        self._seconds.labels(model).observe(seconds)

    def received(self, size: int) -> None:
        self._bytes.labels("in").inc(size)

    def sent(self, size: int) -> None:
        self._bytes.labels("out").inc(size)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _Now(Collector):
    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    def collect(self) -> Iterable[Metric]:
        queued = GaugeMetricFamily("nnzoo_jobs_queued", "Jobs that wait for a worker", labels=["model"])
        workers = GaugeMetricFamily("nnzoo_workers", "Workers", labels=["model", "state"])
        restarts = CounterMetricFamily(
            "nnzoo_worker_restarts", "Starts in the place of one that ended", labels=["model"]
        )
        for model, (waiting, staff) in self._counts().items():
            queued.add_metric([model], waiting)
            restarts.add_metric([model], staff.restarts)
            for state in ("idle", "busy", "starting"):
                workers.add_metric([model, state], getattr(staff, state))
        return [queued, workers, restarts]
