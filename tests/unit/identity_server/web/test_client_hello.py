"""A client's hello is recognised without an answer, and nothing a stranger sends breaks that."""

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from identity_server.web.client_hello import ClientHello, missing, read_hello


def hello(name="bundle.example.org", protocols=("acme-tls/1",)):
    """What Python's TLS client really sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols(list(protocols))
    sent = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return sent.read()


def test_protocols_and_name_are_read():
    """RFC 8737: a validator offers acme-tls/1 alone, and names the domain."""
    assert read_hello(hello()) == ClientHello((b"acme-tls/1",), b"bundle.example.org")
    assert read_hello(hello(protocols=("h2", "http/1.1"))).protocols == (b"h2", b"http/1.1")
    assert read_hello(hello(name=None, protocols=())) == ClientHello()


def test_how_much_is_missing_is_known_from_the_first_bytes():
    data = hello()
    assert missing(data) == 0
    assert missing(b"") == 5
    for size in range(1, len(data)):
        assert missing(data[:size]) > 0
        assert read_hello(data[:size]) is None
    assert missing(b"GET / HTTP/1.1\r\n") == missing(b"\x16\x03\x01\xff\xff") == 0


@given(st.binary(max_size=300))
def test_noise_is_no_hello(data):
    """S29."""
    assert read_hello(data) is None
    read_hello(b"\x16\x03\x01" + len(data).to_bytes(2) + data)


@given(st.data())
def test_a_changed_byte_breaks_nothing(data):
    """S29."""
    sent = bytearray(HELLO)
    sent[data.draw(st.integers(0, len(sent) - 1))] = data.draw(st.integers(0, 255))
    read_hello(bytes(sent))
    missing(bytes(sent))


HELLO = hello()
