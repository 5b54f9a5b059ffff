"""S60: which addresses are connected to."""

import pytest

from identity_server.domain.reachability import MAX_NETWORKS, AddressPolicy, parse_networks

PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "2606:4700::1111",
    "2a00:1450:4001:81b::200e",
    "172.32.0.1",
    "100.128.0.1",
    "64:ff9b::808:808",
]
REFUSED = {
    "0.0.0.0": "unspecified",
    "0.1.2.3": "private",
    "127.0.0.1": "loopback",
    "127.255.255.254": "loopback",
    "10.0.0.1": "private",
    "172.16.0.1": "private",
    "192.168.1.1": "private",
    "100.64.0.1": "not a public",
    "169.254.1.1": "link-local",
    "169.254.169.254": "metadata",
    "168.63.129.16": "metadata",
    "fd00:ec2::254": "metadata",
    "224.0.0.1": "multicast",
    "239.255.255.250": "multicast",
    "240.0.0.1": "private",
    "255.255.255.255": "private",
    "192.0.2.1": "private",
    "198.18.0.1": "private",
    "::": "unspecified",
    "::1": "loopback",
    "fe80::1": "link-local",
    "fe80::1%eth0": "link-local",
    "fec0::1": "private",
    "fc00::1": "private",
    "fd12:3456::1": "private",
    "ff02::1": "multicast",
    "2001:db8::1": "private",
    "::ffff:127.0.0.1": "loopback",
    "::ffff:169.254.169.254": "metadata",
    "::ffff:10.1.2.3": "private",
    "::7f00:1": "not a public|loopback|private",
    "64:ff9b::7f00:1": "loopback",
    "64:ff9b::a00:1": "private",
    "2002:7f00:1::": "loopback|private",
    "2002:a00:1::1": "private",
}


@pytest.mark.parametrize("address", PUBLIC)
def test_what_anybody_can_reach_is_connected_to(address):
    assert AddressPolicy().refusal(address) == ""


@pytest.mark.parametrize(("address", "kind"), REFUSED.items(), ids=list(REFUSED))
def test_what_only_we_can_reach_is_refused(address, kind):
    refusal = AddressPolicy().refusal(address)
    assert any(word in refusal for word in kind.split("|")), refusal


@pytest.mark.parametrize("text", ["", "localhost", "1.2.3", "1.2.3.4.5", "::g", "8.8.8.8/32", "0x7f.1"])
def test_what_is_no_address_is_refused(text):
    assert AddressPolicy().refusal(text) == "is not an IP address"


@pytest.mark.parametrize(
    ("networks", "address", "allowed"),
    [
        (["10.0.0.0/8"], "10.1.2.3", True),
        (["10.0.0.0/8"], "::ffff:10.1.2.3", True),
        (["10.0.0.0/8"], "192.168.0.1", False),
        (["127.0.0.1"], "127.0.0.1", True),
        (["127.0.0.1"], "127.0.0.2", False),
        (["fd00:1::/48"], "fd00:1::5", True),
        (["fd00::/8"], "fd00:ec2::254", False),
        (["0.0.0.0/0", "::/0"], "192.168.0.1", True),
        (["0.0.0.0/0", "::/0"], "::1", True),
        (["0.0.0.0/0"], "169.254.3.4", False),
        (["169.254.0.0/16"], "169.254.3.4", True),
        (["169.254.0.0/16"], "169.254.169.254", False),
        (["0.0.0.0/0"], "168.63.129.16", False),
        (["0.0.0.0/0"], "0.0.0.0", False),
        (["0.0.0.0/0"], "224.0.0.1", False),
        (["fe80::/10"], "fe80::1", True),
        (["10.0.0.0/8"], "64:ff9b::a00:1", True),
    ],
)
def test_listed_networks_are_connected_to_but_never_those_that_hand_out_credentials(networks, address, allowed):
    refusal = AddressPolicy(parse_networks(networks)).refusal(address)
    assert (refusal == "") is allowed, refusal


@pytest.mark.parametrize("text", ["10.0.0.1/8", "10.0.0.0/33", "all", "", "example.org"])
def test_a_network_is_written_as_one(text):
    with pytest.raises(ValueError, match="is not a network"):
        parse_networks([text])


def test_networks_are_few():
    with pytest.raises(ValueError, match="at most"):
        parse_networks(["10.0.0.0/8"] * (MAX_NETWORKS + 1))
