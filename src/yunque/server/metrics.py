"""Figures of the server for Prometheus. No label holds what a client sent, and each has few values."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"})

Gauge = tuple[str, str, dict[str, float] | float]
"""A name, what it is, and its value now, or its value for each model."""


class Metrics:
    """Counters of a server. `gauges` is asked for what is so now whenever somebody looks."""

    def __init__(self, gauges: Callable[[], Iterable[Gauge]]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(_Gauges(gauges))
        count, seconds = self._counter, self._histogram
        self.requests = count("requests", "Requests that were answered", "method", "route", "status")
        self.request_seconds = seconds("request_seconds", "Seconds from a request to its end", "route")
        self.first_token_seconds = seconds("first_token_seconds", "Seconds to the first token of an answer")
        self.prompt_tokens = count("prompt_tokens", "Tokens that were read")
        self.completion_tokens = count("completion_tokens", "Tokens that were written")
        self.refused = count("refused", "Requests that were refused for now (429)")
        self.disconnected = count("disconnected", "Clients that went away before their answer was whole")
        self.connections_cut = count("connections_cut", "Connections that the server ended", "reason")

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"yunque_{name}", what, labels, registry=self.registry)

    def _histogram(self, name: str, what: str, *labels: str) -> Histogram:
        return Histogram(f"yunque_{name}", what, labels, buckets=_SECONDS, registry=self.registry)


def known_method(method: str) -> str:
    """The method, or `other` for one that a client made up."""
    return method if method in _METHODS else "other"


class _Gauges(Collector):
    def __init__(self, gauges: Callable[[], Iterable[Gauge]]) -> None:
        self._gauges = gauges

    def collect(self) -> Iterable[Metric]:
        """What is so now."""
        for name, what, value in self._gauges():
            if isinstance(value, dict):
                family = GaugeMetricFamily(f"yunque_{name}", what, labels=("model",))
                for model, one in value.items():
                    family.add_metric((model,), one)
            else:
                family = GaugeMetricFamily(f"yunque_{name}", what, value=value)
            yield family
