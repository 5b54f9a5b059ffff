"""S1, S24: a method without a rule cannot ship, and a rule without a method is a mistake."""

import importlib
import pkgutil

import pytest

import spiffe_core.wire._gen.muniment.server as own_protos
import spiffe_core.wire._gen.spire.api.server as server_protos
from identity_server.domain.access import ACCESS, CallerKind
from identity_server.rpc.health_api import SERVICE as HEALTH
from spiffe_core.wire.services import full_method

A, L, D, G = CallerKind.ANYONE, CallerKind.LOCAL, CallerKind.DOWNSTREAM, CallerKind.AGENT
OPERATOR = frozenset({L, CallerKind.ADMIN})

EXCEPTIONS = {  # spire_features section 8.1: everything else is for local callers and administrators
    "agent.v1.Agent/AttestAgent": {A},
    "agent.v1.Agent/RenewAgent": {G},
    "agent.v1.Agent/PostStatus": {G},
    "bundle.v1.Bundle/GetBundle": {A},
    "bundle.v1.Bundle/GetFederatedBundle": {L, CallerKind.ADMIN, G},
    "bundle.v1.Bundle/PublishJWTAuthority": {D},
    "bundle.v1.Bundle/PublishWITAuthority": {D},
    "entry.v1.Entry/GetAuthorizedEntries": {G},
    "entry.v1.Entry/SyncAuthorizedEntries": {G},
    "svid.v1.SVID/BatchNewX509SVID": {G},
    "svid.v1.SVID/NewJWTSVID": {G},
    "svid.v1.SVID/BatchNewWITSVID": {G},
    "svid.v1.SVID/NewDownstreamX509CA": {D},
    "logger.v1.Logger/GetLogger": {L},
    "logger.v1.Logger/SetLogLevel": {L},
    "logger.v1.Logger/ResetLogLevel": {L},
    "debug.v1.Debug/GetInfo": {L},
}


def every_method():
    """The full name of each method of each server service, SPIRE's and ours, by walking the generated descriptors."""
    names = {full_method(method) for method in HEALTH.methods}
    for package in (server_protos, own_protos):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name.endswith("_pb2"):
                services = importlib.import_module(module.name).DESCRIPTOR.services_by_name.values()
                names |= {full_method(method) for service in services for method in service.methods}
    return names


def test_the_walk_finds_spires_eight_services_health_and_our_own():
    assert len({name.split("/")[1] for name in every_method()}) == 13


def test_every_method_has_a_rule_and_every_rule_a_method():
    """S1: deny by default, and nothing forgotten."""
    assert set(ACCESS) == every_method()


def test_no_rule_is_empty():
    assert all(ACCESS.values())


@pytest.mark.parametrize("method", sorted(name for name in ACCESS if name.startswith("/spire.")))
def test_the_rule_is_spires(method):
    """S1: the matrix of spire_features section 8.1, method by method."""
    short = method.removeprefix("/spire.api.server.")
    assert ACCESS[method] == EXCEPTIONS.get(short, OPERATOR)


def test_orders_to_all_servers_are_for_operators():
    """A15: as every other step of a forced rotation."""
    assert {ACCESS[name] for name in ACCESS if name.startswith("/muniment.server.authorityorders.")} == {OPERATOR}


def test_agents_follow_and_operators_look_how_far_they_are():
    """A9."""
    rows = {name.rpartition("/")[2]: kinds for name, kinds in ACCESS.items() if ".propagation." in name}
    assert rows == {
        "Follow": frozenset({G}),
        **dict.fromkeys(("AwaitAgents", "ListProgress", "CountInForce"), OPERATOR),
    }


def test_operators_are_explained_to_and_agents_get_a_count():
    """A10."""
    rows = {name.rpartition("/")[2]: kinds for name, kinds in ACCESS.items() if ".explain." in name}
    assert rows == {"Explain": OPERATOR, "Elsewhere": frozenset({G}), "LintEntries": OPERATOR}


def test_health_is_for_local_callers():
    assert {ACCESS[full_method(method)] for method in HEALTH.methods} == {frozenset({L})}


def test_the_table_cannot_be_changed_at_run_time():
    with pytest.raises(TypeError):
        ACCESS["/new.Service/Method"] = frozenset({A})
