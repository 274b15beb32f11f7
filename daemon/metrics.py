"""Prometheus metrics. A registry of our own: nothing of the process leaks in that is not listed here."""

from collections.abc import Iterable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

# a time stamp beside every counter doubles the page and says nothing that uptime does not
disable_created_metrics()  # type: ignore[no-untyped-call]

_TTFT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_GAP = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_GPU = {
    "usable": "1: a worker may be started on it",
    "utilization_ratio": "Share of the time in which something ran on it",
    "memory_used_bytes": "Memory in use, by anybody",
    "memory_total_bytes": "Memory that it has",
    "power_watts": "Power that it draws",
    "energy_joules": "Energy that it has taken since its driver was loaded",
    "temperature_celsius": "Its temperature",
}


_USED = {
    "requests": "Requests that have ended",
    "prompt": "Prompt tokens",
    "cached": "Prompt tokens found in a shared prefix",
    "output": "Tokens generated",
    "seconds": "Seconds of GPUs or cores",
    "joules": "Energy of GPUs",
}
MAX_CLIENTS = 100
OTHERS, NOBODY = "other", "(none)"


class Metrics:
    """One daemon's metrics; a model's are made when it is first seen."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        model = ("model",)
        self._requests = Counter("llmd_requests", "Requests by outcome", ("model", "outcome"), registry=registry)
        self._prompt = Counter("llmd_prompt_tokens", "Prompt tokens read", model, registry=registry)
        self._cached = Counter("llmd_cached_tokens", "Prompt tokens found in a shared prefix", model, registry=registry)
        self._output = Counter("llmd_output_tokens", "Tokens generated", model, registry=registry)
        self._waiting = Gauge("llmd_waiting", "Sequences that wait for a slot", model, registry=registry)
        self._running = Gauge("llmd_running", "Sequences in a slot", model, registry=registry)
        self._kv = Gauge("llmd_kv_used_ratio", "Share of the KV cache's positions in use", model, registry=registry)
        self._threads = Gauge("llmd_threads", "Threads that compute, while any do", model, registry=registry)
        self._share = Gauge(
            "llmd_threads_share", "Threads that may: more than compute where others use the cores", model,
            registry=registry,
        )  # fmt: skip
        self._up = Gauge("llmd_model_ready", "1: the model serves", model, registry=registry)
        self._quarantined = Gauge(
            "llmd_model_quarantined", "Replicas that crashed again and again, and are not started any more", model,
            registry=registry,
        )  # fmt: skip
        self._restarts = Counter(
            "llmd_worker_restarts", "Times a worker had to be started again", model, registry=registry
        )
        self._faults = Counter(
            "llmd_request_faults", "Requests that a fault of the server's own ended", model, registry=registry
        )
        self._ttft = Histogram(
            "llmd_time_to_first_token_seconds",
            "From admission to the first token",
            model,
            buckets=_TTFT,
            registry=registry,
        )
        self._gap = Histogram(
            "llmd_inter_token_seconds", "Between two tokens of a sequence", model, buckets=_GAP, registry=registry
        )
        self._ends = Gauge(
            "llmd_certificate_end_timestamp_seconds",
            "When it ends: root, issuer, server, (revocation) list, client",
            ("kind", "client", "serial"),
            registry=registry,
        )
        text = "1: the kernel holds what reads models, schemas and templates to what is its own"
        self._confined = Gauge("llmd_confined", text, registry=registry)
        self._gpus = {
            name: Gauge(f"llmd_gpu_{name}", text, ("gpu", "name"), registry=registry) for name, text in _GPU.items()
        }
        self._used = {
            name: Counter(f"llmd_client_{name}", f"{text}, of each client", ("client",), registry=registry)
            for name, text in _USED.items()
        }
        self._clients: dict[str, str] = {}  # to what they are called
        self._models: dict[str, ModelMetrics] = {}

    def used(self, client: str, more: Mapping[str, float]) -> None:
        """By the names of `_USED`. Labels are bounded: the first clients have their own, the others share one."""
        label = self._clients.get(client)
        if label is None:
            label = self._clients[client] = (client or NOBODY) if len(self._clients) < MAX_CLIENTS else OTHERS
        for name, value in more.items():
            self._used[name].labels(label).inc(value)

    def model(self, name: str) -> "ModelMetrics":
        if name not in self._models:
            self._models[name] = ModelMetrics(self, name)
        return self._models[name]

    def outcome(self, model: str, outcome: str) -> None:
        self._requests.labels(model, outcome).inc()

    def confined(self, holds: bool) -> None:
        self._confined.set(holds)

    def certificates(self, ends: Iterable[tuple[str, str, str, float]]) -> None:
        """All there are now: kind, client, serial, and the end in Unix seconds."""
        self._ends.clear()
        for kind, client, serial, end in ends:
            self._ends.labels(kind, client, serial).set(end)

    def gpus(self, found: Iterable[tuple[str, str, Mapping[str, float | None]]]) -> None:
        """All there are now: UUID, name, and the figures of `_GPU`; None where the driver does not tell."""
        for gauge in self._gpus.values():
            gauge.clear()
        for uuid, name, figures in found:
            for figure, value in figures.items():
                if value is not None:
                    self._gpus[figure].labels(uuid, name).set(value)

    def text(self) -> bytes:
        """Prometheus' text format."""
        for model in self._models.values():
            model.show()
        return generate_latest(self.registry)


class ModelMetrics:
    """One model's metrics, looked up once: an event costs no label lookup."""

    def __init__(self, m: Metrics, name: str) -> None:
        self.prompt = m._prompt.labels(name).inc
        self.cached = m._cached.labels(name).inc
        self.output = m._output.labels(name).inc
        self.ttft = m._ttft.labels(name).observe
        self.gap = m._gap.labels(name).observe
        self.restarts = m._restarts.labels(name).inc
        self.faults = m._faults.labels(name).inc
        self.up = m._up.labels(name).set
        self.quarantined = m._quarantined.labels(name).set
        self._running, self._waiting, self._kv = m._running.labels(name), m._waiting.labels(name), m._kv.labels(name)
        self._threads, self._share = m._threads.labels(name), m._share.labels(name)
        self._states: dict[int, tuple[int, int, float, int, int]] = {}
        self.queued = 0  # sequences that wait for a slot, in no worker yet

    def state(self, worker: int, running: int, waiting: int, kv: float, threads: int = 0, share: int = 0) -> None:
        """Of one of its workers, by its process. What is shown is of all: the sums, and of `kv` the fullest one's."""
        self._states[worker] = (running, waiting, kv, threads if running else 0, share if running else 0)
        self.show()

    def gone(self, worker: int) -> None:
        self._states.pop(worker, None)
        self.show()

    def show(self) -> None:
        states = self._states.values()
        sums = ((self._running, 0), (self._waiting, 1), (self._threads, 3), (self._share, 4))
        for gauge, at in sums:
            gauge.set(sum(state[at] for state in states))
        self._waiting.inc(self.queued)
        self._kv.set(max((state[2] for state in states), default=0.0))
