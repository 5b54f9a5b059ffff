"""Endpoint addresses: the N-E vectors, precedence, and what is printed."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

import pytest

from spiffe_core.errors import InvalidAddress, Kind
from spiffe_core.runtime.unix_sockets import MAX_SOCKET_PATH_BYTES
from workload_api.address import (
    MAX_ADDRESS_BYTES,
    TcpAddress,
    UnixAddress,
    endpoint_address,
    parse_address,
    require_local,
)

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "endpoint_addresses.json").read_text("utf-8"))


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["id"])
def test_bad_addresses_are_refused_by_the_rule_they_break(vector):
    """N-E-02..14, WEP-11..15: an error before any connection, and the next good address is read as before."""
    assert str(parse_address(vector["control"])) == vector["control"]
    for text in vector["inputs"]:
        with pytest.raises(InvalidAddress) as refusal:
            parse_address(text)
        assert vector["rule"] in refusal.value.public, text
        assert refusal.value.kind is Kind.INVALID
    assert str(parse_address(vector["control"])) == vector["control"]


def test_without_configuration_and_environment_the_error_names_the_variable():
    """N-E-01, WEP-10."""
    assert endpoint_address(None, {"SPIFFE_ENDPOINT_SOCKET": "unix:///a"}) == UnixAddress("/a")
    with pytest.raises(InvalidAddress, match="set SPIFFE_ENDPOINT_SOCKET"):
        endpoint_address(None, {"OTHER": "unix:///a"})


def test_explicit_configuration_wins_over_the_environment():
    """WEP-10: also when it is wrong, because guessing would connect somewhere else."""
    environ = {"SPIFFE_ENDPOINT_SOCKET": "unix:///env"}
    assert endpoint_address("unix:///explicit", environ) == UnixAddress("/explicit")
    for wrong in ("", "explicit"):
        with pytest.raises(InvalidAddress):
            endpoint_address(wrong, environ)


def test_an_empty_variable_is_an_error_and_not_an_absent_one():
    """N-E-02."""
    with pytest.raises(InvalidAddress, match="is empty"):
        endpoint_address(None, {"SPIFFE_ENDPOINT_SOCKET": ""})


@pytest.mark.parametrize(
    ("text", "address", "printed"),
    [
        ("unix:///run/x/agent.sock", UnixAddress("/run/x/agent.sock"), "unix:///run/x/agent.sock"),
        ("unix:/run/x.sock", UnixAddress("/run/x.sock"), "unix:///run/x.sock"),
        ("tcp://127.0.0.1:8081", TcpAddress(ipaddress.ip_address("127.0.0.1"), 8081), "tcp://127.0.0.1:8081"),
        ("tcp://[::1]:8081", TcpAddress(ipaddress.ip_address("::1"), 8081), "tcp://[::1]:8081"),
        ("tcp://[0:0::1]:080", TcpAddress(ipaddress.ip_address("::1"), 80), "tcp://[::1]:80"),
    ],
)
def test_good_addresses_are_read_and_printed_in_one_form(text, address, printed):
    assert parse_address(text) == address
    assert str(address) == printed


def test_a_socket_path_must_fit_the_kernel():
    longest = "/" + "a" * (MAX_SOCKET_PATH_BYTES - 1)
    assert str(parse_address(f"unix://{longest}")) == f"unix://{longest}"
    with pytest.raises(InvalidAddress, match="at most 107 bytes"):
        parse_address(f"unix://{longest}a")
    with pytest.raises(InvalidAddress, match="at most 107 bytes"):
        parse_address("unix:///" + "é" * 54)


def test_a_huge_address_is_refused_and_not_echoed():
    with pytest.raises(InvalidAddress, match="more than 4096 bytes") as refusal:
        parse_address("unix:///" + "a" * MAX_ADDRESS_BYTES)
    assert len(refusal.value.public) < 400


def test_values_check_themselves_however_they_are_made():
    for path in ("", "relative", "/", "/a?b"):
        with pytest.raises(InvalidAddress):
            UnixAddress(path)
    with pytest.raises(InvalidAddress, match="between 1 and 65535"):
        TcpAddress(ipaddress.ip_address("127.0.0.1"), 0)


@pytest.mark.parametrize("text", ["tcp://0.0.0.0:80", "tcp://[::]:80", "tcp://10.0.0.1:80", "tcp://[fe80::1]:80"])
def test_serving_beyond_this_machine_needs_an_explicit_word(text):
    """N-E-15, WEP-02, WEP-06."""
    address = parse_address(text)
    with pytest.raises(InvalidAddress, match="loopback"):
        require_local(address)
    assert require_local(address, allow_remote=True) is address


@pytest.mark.parametrize("text", ["tcp://127.0.0.1:80", "tcp://127.8.8.8:80", "tcp://[::1]:80", "unix:///a"])
def test_serving_this_machine_is_fine(text):
    address = parse_address(text)
    assert require_local(address) is address
