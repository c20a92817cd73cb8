"""Decodes what `send.rs` has sent, with protobuf's own Python library and the OpenTelemetry project's messages.

Each body is compared, as a whole message, with one that is written out here: so what is missing, and what is too much,
is an error. JSON is read by protobuf's own reader, which refuses fields that it does not know; what OTLP has otherwise,
and what that reader does not insist on, is looked at before.
"""

import base64
import json
import math
import re
import sys
from pathlib import Path

from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import (
    AnyValue,
    ArrayValue,
    InstrumentationScope,
    KeyValue,
    KeyValueList,
)
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AGGREGATION_TEMPORALITY_CUMULATIVE,
    AGGREGATION_TEMPORALITY_DELTA,
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

TIME = 1_700_000_000_000_000_000
TRACE = bytes(0xF0 + n for n in range(16))


# ===== what was sent =====


def value(of):
    match of:
        case bool():
            return AnyValue(bool_value=of)
        case int():
            return AnyValue(int_value=of)
        case float():
            return AnyValue(double_value=of)
        case str():
            return AnyValue(string_value=of)
        case bytes():
            return AnyValue(bytes_value=of)
        case list():
            return AnyValue(array_value=ArrayValue(values=map(value, of)))
        case dict():
            return AnyValue(kvlist_value=KeyValueList(values=attributes(of)))
    raise TypeError(of)


def attributes(of):
    return [KeyValue(key=key, value=value(of)) for key, of in of.items()]


def span_id(last):
    return bytes([0, 1, 2, 3, 4, 5, 6, last])


RESOURCE = Resource(attributes=attributes({"service.name": "shop"}))
RESOURCE_SCHEMA = "https://schema/resource"
SCOPE_SCHEMA = "https://schema/scope"


def scope(name="lib"):
    return InstrumentationScope(
        name=name, version="1.2.3", attributes=attributes({"scoped": True})
    )


def traces():
    server = Span(
        trace_id=TRACE,
        span_id=span_id(7),
        trace_state="vendor=state",
        parent_span_id=bytes([9] * 8),
        name="GET /orders",
        kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=TIME + 1,
        end_time_unix_nano=TIME + 2_000_000_000,
        attributes=attributes(
            {
                "text": 'schlüssel "🔑"\n\u0001',
                "empty": "",
                "bool": False,
                "int": -(2**63),
                "double": 0.1,
                "nan": math.nan,
                "infinite": -math.inf,
                "bools": [True, False],
                "ints": [0, 2**63 - 1],
                "doubles": [-0.5, math.inf],
                "texts": ["a", ""],
                "none": [],
            }
        ),
        dropped_attributes_count=2**32 - 1,
        events=[
            Span.Event(
                time_unix_nano=TIME + 3,
                name="retried",
                attributes=attributes({"n": 1}),
                dropped_attributes_count=2,
            )
        ],
        dropped_events_count=3,
        links=[
            Span.Link(
                trace_id=TRACE,
                span_id=span_id(8),
                trace_state="vendor=state",
                attributes=attributes({"n": 1}),
                dropped_attributes_count=4,
                flags=0x301,
            )
        ],
        dropped_links_count=5,
        status=Status(message="no luck", code=Status.STATUS_CODE_ERROR),
        flags=0x301,
    )
    client = Span(
        trace_id=TRACE,
        span_id=span_id(6),
        trace_state="vendor=state",
        kind=Span.SPAN_KIND_CLIENT,
        status=Status(code=Status.STATUS_CODE_OK),
        flags=0x101,
    )
    scopes = [
        ScopeSpans(scope=scope(), spans=[server], schema_url=SCOPE_SCHEMA),
        ScopeSpans(scope=InstrumentationScope(), spans=[client]),
    ]
    return ExportTraceServiceRequest(
        resource_spans=[
            ResourceSpans(resource=RESOURCE, scope_spans=scopes, schema_url=RESOURCE_SCHEMA)
        ]
    )


def logs():
    full = LogRecord(
        time_unix_nano=TIME + 1,
        observed_time_unix_nano=TIME + 2,
        severity_number=14,
        severity_text="WARN2",
        body=value("payment accepted"),
        attributes=attributes(
            {
                "text": "ü",
                "int": -1,
                "double": math.nan,
                "bool": True,
                "bytes": b"\x00\xff\xfb\xef",
            }
        ),
        flags=1,
        trace_id=TRACE,
        span_id=span_id(7),
        event_name="payment",
    )
    bodies = [2**63 - 1, False, b"bytes", {"list": [1, "two"]}]
    others = [LogRecord(body=value(body)) for body in bodies] + [LogRecord()]
    scopes = [
        ScopeLogs(scope=scope("shop::payment"), log_records=[full], schema_url=SCOPE_SCHEMA),
        ScopeLogs(scope=scope(), log_records=others, schema_url=SCOPE_SCHEMA),
    ]
    return ExportLogsServiceRequest(
        resource_logs=[
            ResourceLogs(resource=RESOURCE, scope_logs=scopes, schema_url=RESOURCE_SCHEMA)
        ]
    )


def metrics():
    delta = AGGREGATION_TEMPORALITY_DELTA

    def number(of, **more):
        kind = {"as_int": of} if isinstance(of, int) else {"as_double": of}
        return [NumberDataPoint(**kind, **more)]

    book = attributes({"kind": "book"})
    counter = Sum(
        data_points=number(3, attributes=book), aggregation_temporality=delta, is_monotonic=True
    )
    # No signed number is as large, and a double says it nearly.
    huge = Sum(data_points=number(2.0**64), aggregation_temporality=delta, is_monotonic=True)
    open_ = Sum(data_points=number(-5), aggregation_temporality=AGGREGATION_TEMPORALITY_CUMULATIVE)
    took = HistogramDataPoint(
        count=4, sum=115.5, bucket_counts=[1, 2, 1], explicit_bounds=[1, 10], min=0.5, max=100
    )
    # At scale 0, bucket n holds what is above 2**n and not above 2**(n + 1).
    exponential = ExponentialHistogramDataPoint(
        count=5,
        sum=7,
        scale=0,
        zero_count=1,
        positive=ExponentialHistogramDataPoint.Buckets(offset=-1, bucket_counts=[1, 0, 2]),
        negative=ExponentialHistogramDataPoint.Buckets(offset=0, bucket_counts=[1]),
        min=-2,
        max=4,
    )
    all_of_them = [
        Metric(name="counter", description="orders", unit="{order}", sum=counter),
        Metric(name="huge", sum=huge),
        Metric(name="open", sum=open_),
        Metric(name="load", gauge=Gauge(data_points=number(0.75))),
        Metric(
            name="took",
            histogram=Histogram(data_points=[took], aggregation_temporality=delta),
        ),
        Metric(
            name="exponential",
            exponential_histogram=ExponentialHistogram(
                data_points=[exponential], aggregation_temporality=delta
            ),
        ),
    ]
    scopes = [ScopeMetrics(scope=scope(), metrics=all_of_them, schema_url=SCOPE_SCHEMA)]
    return ExportMetricsServiceRequest(
        resource_metrics=[
            ResourceMetrics(resource=RESOURCE, scope_metrics=scopes, schema_url=RESOURCE_SCHEMA)
        ]
    )


# ===== what was received =====

IDS = {"traceId": 16, "spanId": 8, "parentSpanId": 8}
STRINGS = re.compile(r"intValue|asInt|count|zeroCount|bucketCounts|.*UnixNano")
NUMBERS = re.compile(r"kind|code|severityNumber|aggregationTemporality|flags|scale|offset|dropped.*")


def from_otlp(name, of):
    """What protobuf's JSON has for what OTLP's has, after a look at what that must be."""
    if isinstance(of, dict):
        return {name: from_otlp(name, of) for name, of in of.items()}
    if isinstance(of, list):
        return [from_otlp(name, of) for of in of]
    if name in IDS:
        assert re.fullmatch("[0-9a-f]*", of) and len(of) == 2 * IDS[name], f"{name} is {of}"
        return base64.b64encode(bytes.fromhex(of)).decode()
    if STRINGS.fullmatch(name):
        assert isinstance(of, str) and re.fullmatch("-?[0-9]+", of), f"{name} is {of!r}"
    if NUMBERS.fullmatch(name):
        assert isinstance(of, int), f"{name} is {of!r}"
    return of


def decode(message, file):
    if file.suffix == ".pb":
        message.ParseFromString(file.read_bytes())
    else:
        read = json.loads(file.read_text(encoding="utf-8"), parse_constant=not_json)
        json_format.Parse(json.dumps(from_otlp("", read)), message)
    return message


def not_json(of):
    raise ValueError(f"{of} is no JSON")


def without_nan(message, path=""):
    """Takes the values out that are not equal to themselves, and returns where they were."""
    found = []
    for field, of in message.ListFields():
        where = f"{path}.{field.name}"
        if field.message_type is not None:
            repeated = of if hasattr(of, "__len__") else [of]
            for n, part in enumerate(repeated):
                found += without_nan(part, f"{where}[{n}]")
        elif isinstance(of, float) and math.isnan(of):
            message.ClearField(field.name)
            found.append(where)
    return found


def without_times(request):
    """The SDK has read the clock: later than it was written, and none before its start."""
    for resource in request.resource_metrics:
        for scope_ in resource.scope_metrics:
            for metric in scope_.metrics:
                for point in getattr(metric, metric.WhichOneof("data")).data_points:
                    assert TIME < point.start_time_unix_nano <= point.time_unix_nano, point
                    point.ClearField("start_time_unix_nano")
                    point.ClearField("time_unix_nano")


def check(expected, file):
    received = decode(type(expected)(), file)
    if isinstance(received, ExportMetricsServiceRequest):
        without_times(received)
    nan = without_nan(expected)
    assert without_nan(received) == nan, f"NaN in {file.name}"
    assert received == expected, f"{file.name}: expected\n{expected}\nbut received\n{received}"
    print(f"{file.name}: {file.stat().st_size} bytes are what was sent")


def main():
    folder = Path(sys.argv[1])
    for name, expected in [("traces", traces), ("logs", logs), ("metrics", metrics)]:
        for encoding in ["pb", "json"]:
            check(expected(), folder / f"{name}.{encoding}")


main()
