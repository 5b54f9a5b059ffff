"""Which broker may name workloads how, from where (BAPI-04, BAPI-05, BAPI-12)."""

import pytest

from node_agent.domain.brokers import ANY, KUBERNETES, PROCESS, Broker, Brokers, Origin, Permission
from node_agent.settings import from_mapping
from spiffe_core.errors import ConfigError, Forbidden, InvalidRequest
from spiffe_core.spiffe_id import SpiffeId

ONE, TWO, NOBODY = (SpiffeId.parse(f"spiffe://example.org/{name}") for name in ("one", "two", "nobody"))
HERE, LOOPBACK, ELSEWHERE = Origin(local=True, same_machine=True), Origin(False, True), Origin(False, False)
BROKERS = Brokers([Broker(ONE, (Permission(PROCESS),)), Broker(TWO, (Permission(ANY, allow_over_tcp=True),))])

ALLOWED = [(ONE, PROCESS, HERE), (TWO, PROCESS, HERE), (TWO, PROCESS, LOOPBACK), (TWO, KUBERNETES, ELSEWHERE)]
FORBIDDEN = [
    (None, PROCESS, HERE),
    (NOBODY, PROCESS, HERE),
    (NOBODY, "", HERE),
    (ONE, KUBERNETES, HERE),
    (ONE, PROCESS, LOOPBACK),
    (TWO, PROCESS, ELSEWHERE),
]
INVALID = [(ONE, "", HERE), (TWO, "type.googleapis.com/x.Y", HERE), (TWO, ANY, HERE)]


def test_brokers_are_held_to_their_list():
    for case in ALLOWED:
        BROKERS.check(*case)
    for error, cases in ((Forbidden, FORBIDDEN), (InvalidRequest, INVALID)):
        for case in cases:
            with pytest.raises(error):
                BROKERS.check(*case)
                pytest.fail(str(case))
    assert ONE in BROKERS
    assert NOBODY not in BROKERS
    assert None not in BROKERS


def section(**over):
    one = {"id": str(ONE), "allowed_reference_types": [{"type_url": PROCESS}]}
    return {"trust_domain": "example.org", "broker": {"socket_path": "/run/b/b.sock", "brokers": [one], **over}}


BAD = {
    "nowhere to listen": (section(socket_path=None), "set socket_path, bind_address"),
    "nobody listed": (section(brokers=[]), "brokers"),
    "a broker twice": (section(brokers=[section()["broker"]["brokers"][0]] * 2), "each id stands once"),
    "no kind": (section(brokers=[{"id": str(ONE), "allowed_reference_types": []}]), "allowed_reference_types"),
    "an unknown kind": (
        section(brokers=[{"id": str(ONE), "allowed_reference_types": [{"type_url": "x"}]}]),
        'must be "\\*" or one of',
    ),
    "all kinds and one more": (
        section(brokers=[{"id": str(ONE), "allowed_reference_types": [{"type_url": ANY}, {"type_url": PROCESS}]}]),
        "stands alone",
    ),
    "beside the Workload API": (
        {**section(socket_path="/run/w/broker.sock"), "socket_path": "/run/w/api.sock"},
        "must not lie below the directory",
    ),
}


def test_a_broker_section_that_says_too_little_or_too_much_is_refused():
    for case, (document, text) in BAD.items():
        with pytest.raises(ConfigError, match=text):
            from_mapping(document)
            pytest.fail(case)
    settings = from_mapping(section())
    assert settings.broker.domain() == (Broker(ONE, (Permission(PROCESS),)),)
    assert from_mapping({"trust_domain": "example.org"}).broker is None
