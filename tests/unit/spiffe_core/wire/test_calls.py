"""Every call has an id, a metric under SPIRE's name, and a status in gRPC's words."""

import contextvars
import json
from pathlib import Path

import grpc
import pytest

from spiffe_core.runtime.metrics import Metrics
from spiffe_core.runtime.request_id import begin_request, current_request_id
from spiffe_core.wire.calls import _WORDS, CallMetrics, metric_name

ROWS = json.loads((Path(__file__).parents[3] / "vectors" / "metric_names.json").read_text())["rows"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["method"])
def test_every_method_is_counted_under_spires_name(row):
    prefix = "_".join(row["metric"].split("_")[:2])
    assert f"{prefix}_{metric_name(row['method'])}" == row["metric"]


@pytest.mark.parametrize("method", ["/grpc.health.v1.Health/Check", "", "/", "nonsense"])
def test_probes_and_nonsense_are_not_counted(method):
    assert metric_name(method) == ""
    metrics = Metrics("p")
    CallMetrics(metrics).ended(method, "OK", 1.0, "")
    assert not metrics._counters


def test_statuses_are_spelled_as_in_go():
    assert _WORDS[0] == "OK"
    assert _WORDS[1] == "Canceled"
    assert _WORDS[grpc.StatusCode.PERMISSION_DENIED.value[0]] == "PermissionDenied"
    assert len(_WORDS) == 17


def test_request_ids_are_random_and_belong_to_their_context():
    def served():
        first, second = begin_request(), begin_request()
        assert first != second
        assert current_request_id() == second
        return second

    before = current_request_id()
    assert len(contextvars.copy_context().run(served)) == 16
    assert current_request_id() == before
