"""How the server is, decided from facts: what takes it away from callers, and what is only shown (R10, R16, R24)."""

from dataclasses import replace

import pytest

from identity_server.domain.health import Facts, report_of
from spiffe_core.health import Condition

WELL = Facts(runway=86_000.0, authority_id="a1", next_authority_id="a2", revision=7)


def of(**over):
    return report_of(replace(WELL, **over))


def test_a_well_server_has_no_trouble():
    report = of()
    assert (report.live, report.ready, report.troubles) == (True, True, {})
    assert report.document()["server.ca"] == {
        "state": "ok",
        "runway_seconds": 86_000,
        "authority_id": "a1",
        "next_authority_id": "a2",
    }


@pytest.mark.parametrize(
    ("over", "part"),
    [
        ({"own_late": 61.0}, "server"),
        ({"runway": 7_100.0}, "server.ca"),
        ({"rotation_error": "the key store is full"}, "server.ca.rotator"),
        ({"store_trouble": "no connection", "ready_without_database": True}, "catalog.datastore"),
        ({"event_lag": 10.1, "ready_without_database": True}, "catalog.datastore"),
        ({"upstream_error": "vault is sealed"}, "server.upstream"),
        ({"endpoint_troubles": ("no web certificate yet",)}, "server.endpoints"),
        ({"differences": ("ca.ttl is 1 on server a, 2 on server b",)}, "server.settings"),
        ({"audit_healthy": False, "audit_lost": 3}, "audit"),
        ({"loop_lag": 1.1}, "event_loop"),
    ],
)
def test_what_needs_a_look_is_shown_and_leaves_the_server_ready(over, part):
    report = of(**over)
    assert (report.live, report.ready) == (True, True)
    assert list(report.troubles) == [part]
    assert report.document()[part]["state"] == "degraded"


@pytest.mark.parametrize(
    ("over", "part"),
    [
        ({"draining": True}, "server"),
        ({"runway": None}, "server.ca"),
        ({"runway": 0.0}, "server.ca"),
        ({"runway": 3_599.0}, "server.ca"),
        ({"store_trouble": "no connection"}, "catalog.datastore"),
        ({"event_lag": 10.1}, "catalog.datastore"),
    ],
)
def test_others_should_serve_instead_of_a_server_that_is_live_and_not_ready(over, part):
    report = of(**over)
    assert (report.live, report.ready) == (True, False)
    assert report.document()[part]["state"] == Condition.FAILED.value


def test_an_upstream_is_a_part_where_there_is_one():
    assert "server.upstream" not in of().document()
    assert of(upstream_error="").document()["server.upstream"] == {"state": "ok"}


def test_a_blocked_loop_is_not_live():
    report = of(loop_lag=6.0, loop_blocked=True)
    assert (report.live, report.ready) == (False, False)
