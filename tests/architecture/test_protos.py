"""The generated messages match the .proto files, and both match the written wire contract (spire_wire sections 4-6)."""

import importlib
import pkgutil
import re
import tempfile
from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor

import spiffe_core.wire._gen as generated
from spiffe_core.errors import Kind, Refusal
from spiffe_core.wire import generate
from spiffe_core.wire._gen import workload_pb2
from spiffe_core.wire._gen.spire.api.types import status_pb2
from spiffe_core.wire.services import full_method
from spiffe_core.wire.status import STATUS, kind_of
from tests.doubles.wire_contract import (
    ENUMS,
    METHODS,
    PACKAGES,
)

MODULES = [
    importlib.import_module(info.name)
    for info in pkgutil.walk_packages(generated.__path__, f"{generated.__name__}.")
    if info.name.endswith("_pb2")
]
SCALARS = {
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
}


def type_name(field):
    if field.message_type is not None:
        return field.message_type.name
    return field.enum_type.name if field.enum_type is not None else SCALARS[field.type]


def written(field):
    """A descriptor in the notation of the contract."""
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        kind = "map<{},{}>".format(*(type_name(part) for part in message.fields))
    elif field.is_repeated:
        kind = f"[{type_name(field)}]"
    else:
        kind = type_name(field)
    oneof = field.containing_oneof
    if oneof is not None:
        optional = oneof.name.startswith("_")
        kind += "?" if optional else f"<{oneof.name}>"
    return f"{field.name}={field.number}:{kind}"


def walk(descriptors, prefix=""):
    for descriptor in descriptors:
        if not descriptor.GetOptions().map_entry:
            yield f"{prefix}{descriptor.name}", descriptor
            yield from walk(descriptor.nested_types, f"{prefix}{descriptor.name}.")


def messages_of(package):
    found = {}
    for module in MODULES:
        if module.DESCRIPTOR.package == package:
            found.update(walk(module.DESCRIPTOR.message_types_by_name.values()))
    return found


def services():
    return {service.full_name: service for module in MODULES for service in module.DESCRIPTOR.services_by_name.values()}


def test_every_package_of_the_contract_is_generated_and_no_other():
    assert {module.DESCRIPTOR.package for module in MODULES} == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_messages_have_exactly_the_fields_of_the_contract(package):
    """spire_wire sections 4-6: names, numbers, types, repetition, presence and oneofs. WAPI-05."""
    found = {name: sorted(written(field) for field in message.fields) for name, message in messages_of(package).items()}
    assert found == {name: sorted(fields.split()) for name, fields in PACKAGES[package].items()}


def test_enums_have_exactly_the_values_of_the_contract():
    found = {}
    for module in MODULES:
        enums = list(module.DESCRIPTOR.enum_types_by_name.values())
        for _, message in walk(module.DESCRIPTOR.message_types_by_name.values()):
            enums += message.enum_types
        found.update({enum.full_name: {value.name: value.number for value in enum.values} for enum in enums})
    assert found == {
        name: {value.split("=")[0]: int(value.split("=")[1]) for value in values.split()}
        for name, values in ENUMS.items()
    }


def test_services_are_those_of_the_contract():
    assert set(services()) == set(METHODS)


@pytest.mark.parametrize("service", METHODS)
def test_methods_have_the_contracts_messages_and_streams(service):
    """spire_wire sections 5 and 6."""
    found = {
        method.name: (
            method.client_streaming,
            method.input_type.name,
            method.server_streaming,
            method.output_type.name,
        )
        for method in services()[service].methods
    }
    expected = {}
    for text in METHODS[service].split():
        name, client, request, server, response = re.fullmatch(r"(\w+):(\*?)(\w*)>(\*?)(\w*)", text).groups()
        expected[name] = (bool(client), request or f"{name}Request", bool(server), response or f"{name}Response")
    assert found == expected


def test_the_workload_api_has_no_package():
    """WAPI-04, WAPI-05: the full method is /SpiffeWorkloadAPI/<Rpc>."""
    service = workload_pb2.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"]
    assert workload_pb2.DESCRIPTOR.package == ""
    assert service.full_name == "SpiffeWorkloadAPI"
    assert full_method(service.methods_by_name["FetchX509SVID"]) == "/SpiffeWorkloadAPI/FetchX509SVID"


def test_only_the_counter_is_deprecated():
    assert [
        field.full_name
        for module in MODULES
        for _, message in walk(module.DESCRIPTOR.message_types_by_name.values())
        for field in message.fields
        if field.GetOptions().deprecated
    ] == ["spire.agent.debug.v1.GetInfoResponse.svids_count"]


def test_generated_files_match_the_protos(capfd):
    """The stubs that are checked in are what protoc makes of the .proto files today."""
    pytest.importorskip("grpc_tools")
    assert generate.main(["--check"]) == 0, capfd.readouterr().err


def test_drift_is_noticed():
    """The check above can fail: a missing, an extra and a changed file are all named."""
    kept = {"a": b"1", "b": b"2", "c": b"3"}
    assert generate.drift({"a": b"1", "b": b"x", "d": b"4"}, kept) == ["b", "c", "d"]


def test_no_generated_service_code_is_kept():
    assert not list(generate.GENERATED.rglob("*_grpc.py"))
    assert len(list(generate.GENERATED.rglob("*_pb2.py"))) == len(list(generate.PROTOS.rglob("*.proto")))


def test_generating_needs_only_the_protos():
    pytest.importorskip("grpc_tools")
    with tempfile.TemporaryDirectory() as scratch:
        fresh = generate.generate(Path(scratch))
    assert {Path(name).suffix for name in fresh} == {".py", ".pyi"}
    assert all(b"from __future__" not in content for content in fresh.values())


def test_every_kind_has_a_status_and_back():
    """Every Kind stands in STATUS once, with its own code, and `kind_of` inverts it."""
    assert set(STATUS) == set(Kind)
    codes = [code for code, _ in STATUS.values()]
    assert len(set(codes)) == len(codes)
    assert all(kind_of(code) is kind for kind, (code, _) in STATUS.items())


def test_refusals_have_the_numbers_of_the_wire():
    reasons = dict(status_pb2.PermissionDeniedDetails.Reason.items())
    assert {refusal.name: refusal.value for refusal in Refusal} == {k: v for k, v in reasons.items() if v}
