"""Health as SPIRE answers it (spire_wire 5.8)."""

import pytest
from grpc_health.v1 import health_pb2

from node_agent.rpc.health import Health
from spiffe_core.errors import InvalidRequest

Status = health_pb2.HealthCheckResponse


@pytest.mark.parametrize(("well", "status"), [(True, Status.SERVING), (False, Status.NOT_SERVING)])
async def test_the_overall_health_is_told(well, status):
    answer = await Health(lambda: well).Check(health_pb2.HealthCheckRequest(), None)
    assert answer.status == status


async def test_the_health_of_single_services_is_not_offered():
    with pytest.raises(InvalidRequest, match="per-service health is not supported"):
        await Health(lambda: True).Check(health_pb2.HealthCheckRequest(service="x"), None)


def test_list_and_watch_are_not_offered():
    assert not hasattr(Health, "Watch")
    assert not hasattr(Health, "List")
