"""Traces over OTLP/HTTP, by OpenTelemetry's SDK. Imported by `tracing_setup` alone.

Spans wait in a bounded queue for a thread of the SDK; when the collector is away they are dropped and calls go on. A
caller's `traceparent` gives the trace its id, so that one trace goes through several services; whether it is sampled is
decided by that id and `sample_ratio` alone, never by the caller. `tracestate` and baggage are a stranger's text and are
not taken over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

from opentelemetry import context as contexts
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from spiffe_core.runtime.settings import TracingSection
from spiffe_core.runtime.tracing import SPANS, TRACEPARENT

MOST_WAITING = 4_096
BATCH = 512
CLOSE_SECONDS = 3.0
_PARENT_CHARS = 128


class OtlpTracing:
    """Implements `spiffe_core.runtime.tracing.Tracing`."""

    def __init__(self, section: TracingSection, service: str, version: str) -> None:
        exporter = OTLPSpanExporter(
            endpoint=section.endpoint,
            timeout=section.timeout_seconds,
            certificate_file=str(section.ca_file) if section.ca_file is not None else None,
        )
        self._provider = TracerProvider(
            sampler=TraceIdRatioBased(section.sample_ratio),
            resource=Resource({"service.name": service, "service.version": version}),
            shutdown_on_exit=False,
        )
        processor = BatchSpanProcessor(
            exporter,
            max_queue_size=MOST_WAITING,
            max_export_batch_size=BATCH,
            schedule_delay_millis=section.interval_seconds * 1000.0,
            export_timeout_millis=section.timeout_seconds * 1000.0,
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("muniment", version)
        self._propagator = TraceContextTextMapPropagator()
        self._closed = False

    def begin(
        self, method: str, metadata: Iterable[tuple[str, str | bytes]], request_id: str
    ) -> Callable[[str, int], None]:
        """The call's own span; steps within the call become its children."""
        parent = next((str(value)[:_PARENT_CHARS] for key, value in metadata if key == TRACEPARENT), "")
        above = self._propagator.extract({TRACEPARENT: parent} if parent else {}, context=contexts.Context())
        service, _, call = method.removeprefix("/").partition("/")
        made = self._tracer.start_span(
            f"{service}/{call}",
            context=above,
            kind=SpanKind.SERVER,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": call,
                "muniment.request_id": request_id,
            },
        )
        contexts.attach(set_span_in_context(made, above))  # for this call's task, which ends with the call
        SPANS.set(self._step)

        def end(status: str, number: int) -> None:
            made.set_attribute("rpc.grpc.status_code", number)
            if number:
                made.set_status(Status(StatusCode.ERROR, status))
            made.end()

        return end

    def close(self) -> None:
        """Send what is left; a collector that does not answer is not waited for."""
        if self._closed:
            return
        self._closed = True
        closer = threading.Thread(target=self._provider.shutdown, name="tracing-close", daemon=True)
        closer.start()
        closer.join(CLOSE_SECONDS)

    def _step(self, name: str) -> AbstractContextManager[Any]:
        """What went wrong in it is not told: the texts of errors are for the log."""
        return self._tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False)
