"""From the configuration to what traces calls; the only place that knows of OpenTelemetry's extra."""

from __future__ import annotations

from spiffe_core.errors import ConfigError
from spiffe_core.runtime.settings import TracingSection
from spiffe_core.runtime.tracing import Tracing


def tracing_of(section: TracingSection | None, service: str, version: str) -> Tracing | None:
    """What the configuration asks for; None if it has no [tracing].

    Raises:
        ConfigError: the extra is not installed.
    """
    if section is None:
        return None
    try:
        from spiffe_core.runtime.otlp import OtlpTracing
    except ImportError:
        raise ConfigError(
            "tracing: needs OpenTelemetry, which is not installed: "
            "run pip install '.[otel]' in Muniment's sources, or remove [tracing]",
            field="tracing",
        ) from None
    return OtlpTracing(section, service, version)
