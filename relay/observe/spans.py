"""Spans of ended calls for an OpenTelemetry collector, by OTLP over HTTP. Needs the packages of the extra `otel`.

A span is made from the call record: names of OpenTelemetry's semantic conventions where there are any (http, gen_ai),
`relay.` for the rest. No content, and nothing that the record does not have, but for its place in the caller's trace.
"""

from __future__ import annotations

import random
import re
from typing import Any, Final

from relay import __version__
from relay.observe.call_document import call_document
from relay.records import C_ID, CALL_COLUMNS, CallRecord, call_time_ms

_LATENCY = CALL_COLUMNS.index("latency_us")
_FIRST_BYTE = CALL_COLUMNS.index("first_byte_us")
# Attribute by field of the document; what is null is left out.
ATTRIBUTES = {
    "path": "http.route",
    "status": "http.response.status_code",
    "error_code": "error.type",
    "source_ip": "client.address",
    "user_agent": "user_agent.original",
    "model": "gen_ai.request.model",
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
}
EXPORT_SECONDS = 10.0


# W3C Trace Context: version, trace id, parent id, flags. What a later version has behind them is its own.
_TRACEPARENT: Final = re.compile(rb"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


def parent_of(traceparent: bytes | None) -> tuple[int, int, int] | None:
    """Trace id, span id and flags of a caller's span; None where there is none or it is not valid."""
    match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if match is None or (match[1] == b"00" and match[5] is not None):
        return None
    trace_id, span_id = int(match[2], 16), int(match[3], 16)
    return (trace_id, span_id, int(match[4], 16)) if trace_id and span_id else None


class SpansUnavailable(Exception):  # noqa: N818 - a state, not an error of somebody's
    """The packages of the extra `otel` are not installed."""


class Spans:
    """A `Sink`. `url`: the collector's, as a whole: http://127.0.0.1:4318/v1/traces."""

    def __init__(self, url: str) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk import trace as sdk
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace.export import SpanExportResult
            from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        except ImportError as error:
            raise SpansUnavailable from error
        self.url = url
        self._trace: Any = trace
        self._sdk: Any = sdk
        self._success: Any = SpanExportResult.SUCCESS
        self._scope = InstrumentationScope("relay", __version__)
        self._resource = Resource.create({"service.name": "relay", "service.version": __version__})
        self._exporter: Any = OTLPSpanExporter(endpoint=url, timeout=EXPORT_SECONDS)
        self._random = random.Random()  # noqa: S311 - ids that only have to differ

    def write(self, records: list[tuple[CallRecord, bytes | None]]) -> None:
        """One request to the collector, from records, each with its caller's traceparent.

        OSError where the collector does not take it, after the exporter's own repeats.
        """
        if self._exporter.export([self._span(*pair) for pair in records]) is not self._success:
            raise OSError("the collector did not take the spans")

    def _span(self, record: CallRecord, traceparent: bytes | None) -> Any:
        document = call_document(record)
        trace, sdk = self._trace, self._sdk
        found = parent_of(traceparent)
        parent = None
        if found is not None:
            parent = trace.SpanContext(found[0], found[1], is_remote=True, trace_flags=trace.TraceFlags(found[2]))
        began_ns = call_time_ms(record[C_ID]) * 1_000_000
        events = []
        if record[_FIRST_BYTE] is not None:
            events.append(sdk.Event("first_byte", {}, began_ns + record[_FIRST_BYTE] * 1000))
        failed = document["error_code"] is not None and document["status"] >= 500
        return sdk.ReadableSpan(
            name=document["path"],
            context=trace.SpanContext(
                trace_id=parent.trace_id if parent is not None else self._random.getrandbits(128) or 1,
                span_id=self._random.getrandbits(64) or 1,
                is_remote=False,
                trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED),
            ),
            parent=parent,
            resource=self._resource,
            attributes={
                ATTRIBUTES.get(name, f"relay.{name}"): value
                for name, value in document.items()
                if value is not None and name not in ("time", "latency_ms", "first_byte_ms")
            },
            events=events,
            kind=trace.SpanKind.SERVER,
            status=trace.Status(trace.StatusCode.ERROR if failed else trace.StatusCode.UNSET),
            start_time=began_ns,
            end_time=began_ns + record[_LATENCY] * 1000,
            instrumentation_scope=self._scope,
        )

    def reopen(self) -> None:
        """Nothing is kept open."""

    def close(self) -> None:
        self._exporter.shutdown()
