"""The table of kinds and codes, and errors rebuilt from what a peer sent."""

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import status_pb2 as rpc_status_pb2

from spiffe_core.errors import (
    AgentRefused,
    Exhausted,
    Forbidden,
    Internal,
    InvalidRequest,
    Kind,
    NotFound,
    Refusal,
    Unavailable,
)
from spiffe_core.wire._gen.spire.api.types import status_pb2
from spiffe_core.wire.status import (
    DETAILS_TRAILER,
    KIND_TRAILER,
    STATUS,
    from_rpc_error,
    item_status,
    kind_of,
    random_reference,
    trailers,
)


class Failure:
    """What gRPC raises, as far as it matters here."""

    def __init__(self, code, details="text", metadata=()):
        self._code, self._details, self._metadata = code, details, metadata

    def code(self):
        return self._code

    def details(self):
        return self._details

    def trailing_metadata(self):
        return self._metadata


def rich(*details, code=7):
    packed = []
    for item in details:
        any_message = AnyMessage()
        any_message.Pack(item)
        packed.append(any_message)
    return rpc_status_pb2.Status(code=code, message="x", details=packed).SerializeToString()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, Kind.UNAVAILABLE),
        (grpc.StatusCode.CANCELLED, Kind.UNAVAILABLE),
        (grpc.StatusCode.ABORTED, Kind.UNAVAILABLE),
        (grpc.StatusCode.OUT_OF_RANGE, Kind.INVALID),
        (grpc.StatusCode.UNKNOWN, Kind.INTERNAL),
        (grpc.StatusCode.DATA_LOSS, Kind.INTERNAL),
    ],
)
def test_codes_nobody_here_sends_have_a_kind_as_well(code, kind):
    assert kind_of(code) is kind


def test_every_http_status_is_an_error():
    assert all(400 <= http < 600 for _, http in STATUS.values())


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (Failure(grpc.StatusCode.NOT_FOUND), NotFound),
        (Failure(grpc.StatusCode.UNAVAILABLE), Unavailable),
        (Failure(grpc.StatusCode.DEADLINE_EXCEEDED), Unavailable),
        (Failure(grpc.StatusCode.RESOURCE_EXHAUSTED), Exhausted),
        (Failure(grpc.StatusCode.UNKNOWN), Internal),
        (Failure(grpc.StatusCode.INVALID_ARGUMENT, metadata=((KIND_TRAILER, "invalid"),)), InvalidRequest),
        (Failure(grpc.StatusCode.NOT_FOUND, metadata=None), NotFound),
    ],
)
def test_an_error_is_rebuilt_from_its_code(failure, expected):
    error = from_rpc_error(failure)
    assert type(error) is expected
    assert error.public == "text"


@pytest.mark.parametrize("value", ["invalid", "no-such-kind", b"not-found", ""])
def test_a_kind_that_does_not_fit_the_code_is_ignored(value):
    """A peer cannot make its INTERNAL look like our INVALID."""
    error = from_rpc_error(Failure(grpc.StatusCode.NOT_FOUND, metadata=((KIND_TRAILER, value),)))
    assert type(error) is NotFound


def test_a_status_without_text_has_a_text():
    assert from_rpc_error(Failure(grpc.StatusCode.UNAVAILABLE, details=None)).public == "unavailable"


@pytest.mark.parametrize("refusal", list(Refusal))
def test_a_refusal_is_read_from_the_details(refusal):
    details = status_pb2.PermissionDeniedDetails(reason=refusal.value)
    error = from_rpc_error(Failure(grpc.StatusCode.PERMISSION_DENIED, metadata=((DETAILS_TRAILER, rich(details)),)))
    assert isinstance(error, AgentRefused)
    assert error.refusal is refusal


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        ((DETAILS_TRAILER, b"\xff\xff not a message"),),
        ((DETAILS_TRAILER, "text"),),
        ((DETAILS_TRAILER, rich()),),
        ((DETAILS_TRAILER, rich(status_pb2.Status(code=4))),),
        ((DETAILS_TRAILER, rich(status_pb2.PermissionDeniedDetails())),),
        ((DETAILS_TRAILER, rich(status_pb2.PermissionDeniedDetails(reason=99))),),
    ],
)
def test_a_refusal_without_usable_details_is_just_forbidden(metadata):
    """spire_wire section 2: without the detail an agent must not throw its SVID away."""
    error = from_rpc_error(Failure(grpc.StatusCode.PERMISSION_DENIED, metadata=metadata))
    assert type(error) is Forbidden


def test_details_beside_another_code_mean_nothing():
    details = status_pb2.PermissionDeniedDetails(reason=Refusal.AGENT_BANNED.value)
    failure = Failure(grpc.StatusCode.UNAVAILABLE, metadata=((DETAILS_TRAILER, rich(details)),))
    assert type(from_rpc_error(failure)) is Unavailable


def test_a_details_any_that_does_not_parse_is_just_forbidden():
    bad = AnyMessage(type_url="type.googleapis.com/spire.api.types.PermissionDeniedDetails", value=b"\xff")
    status = rpc_status_pb2.Status(code=7, details=[bad]).SerializeToString()
    error = from_rpc_error(Failure(grpc.StatusCode.PERMISSION_DENIED, metadata=((DETAILS_TRAILER, status),)))
    assert type(error) is Forbidden


def test_only_refused_agents_carry_details():
    assert trailers(NotFound("x")) == ((KIND_TRAILER, "not-found"),)
    assert [key for key, _ in trailers(AgentRefused(Refusal.AGENT_EXPIRED))] == [KIND_TRAILER, DETAILS_TRAILER]


def test_facts_never_leave():
    error = InvalidRequest("public words", password="hunter2")
    assert item_status(error).message == "public words"
    assert "hunter2" not in str(trailers(error))


def test_references_differ():
    assert len({random_reference() for _ in range(100)}) == 100
