"""What Prometheus reads at /metrics, in a registry of the server's own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .engine import Engine
from .log import Record

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Meters:
    """Counters and histograms of one engine; labels take only the names of models that exist."""

    def __init__(self, engine: Engine) -> None:
        self.models = engine.models
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "tunesmith_requests", "Prompts asked", ["route", "model", "status"], registry=self.registry
        )
        self.tokens = Counter("tunesmith_tokens", "Tokens read and written", ["model", "kind"], registry=self.registry)
        self.seconds = Histogram(
            "tunesmith_request_seconds", "Arrival to last token", ["model"], buckets=SECONDS, registry=self.registry
        )
        self.first = Histogram(
            "tunesmith_first_token_seconds",
            "Arrival to first token",
            ["model"],
            buckets=SECONDS,
            registry=self.registry,
        )
        waiting = Gauge("tunesmith_waiting", "Answers that wait for a place", registry=self.registry)
        waiting.set_function(lambda: engine.waiting)
        running = Gauge("tunesmith_running", "Answers under way", registry=self.registry)
        running.set_function(lambda: engine.running)
        reused = Gauge(
            "tunesmith_reused_tokens", "Tokens of prompts found in the cache since the start", registry=self.registry
        )
        reused.set_function(lambda: sum(served.scheduler.reused for served in engine.models.values()))

    def count(self, record: Record) -> None:
        """Take one record in."""
        model = record.model if record.model in self.models else "unknown"
        self.requests.labels(record.route, model, record.status).inc()
        if record.status == 200:
            self.tokens.labels(model, "prompt").inc(record.prompt_tokens)
            self.tokens.labels(model, "answer").inc(record.answer_tokens)
            self.seconds.labels(model).observe(record.seconds)
        if record.first_seconds is not None:
            self.first.labels(model).observe(record.first_seconds)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
