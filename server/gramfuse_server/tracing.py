"""Traces by OpenTelemetry, if the environment names who takes them. Off by default; its SDK is not imported then.

FastAPI and DBOS open the spans. The SDK reads its own variables, `OTEL_…`, as object stores read `AWS_…`.
"""

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from gramfuse_shared.extras import requiring_extras
from gramfuse_shared.version import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
HIDDEN: Final = "url.query"
"""What FastAPI would tell of a request, and logs do not: cursors and searches are the caller's."""
_EXTRAS: Final[Mapping[str, str]] = MappingProxyType({"opentelemetry": "telemetry"})


def start_tracing(service: str) -> bool:
    """Send this process's spans to the endpoint that the environment names; tell whether it names one.

    Raises:
        ExtraMissingError: it does, and the packages are not installed.
    """
    if not os.environ.get(ENDPOINT):
        return False
    with requiring_extras(ENDPOINT, _EXTRAS):
        from opentelemetry import trace  # noqa: PLC0415 - see above
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        provider = new_provider(service)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)  # it sends what is left when the process ends by itself
    return True


def stop_tracing() -> None:
    """Send what is left, for a process that a signal is about to end; only where tracing was started."""
    from opentelemetry import trace  # noqa: PLC0415 - see above
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415

    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        provider.shutdown()


def new_provider(service: str) -> "TracerProvider":
    """Make what spans are taken from: they bear the service's name, and no query."""
    from opentelemetry.context import Context  # noqa: PLC0415 - see above
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider  # noqa: PLC0415

    class Hide(SpanProcessor):
        def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002 - not ours
            if HIDDEN in (span.attributes or {}):
                span.set_attribute(HIDDEN, "***")

    named = os.environ.get("OTEL_SERVICE_NAME") or service
    provider = TracerProvider(resource=Resource.create({"service.name": named, "service.version": __version__}))
    provider.add_span_processor(Hide())
    return provider


def present_context() -> Any:  # noqa: ANN401 - a type of a library that may not be installed
    """Return what joins later work to the span that is open now."""
    from opentelemetry import context  # noqa: PLC0415 - see above

    return context.get_current()
