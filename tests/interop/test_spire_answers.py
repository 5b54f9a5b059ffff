"""The same requests to our admin socket and to a stock spire-server's: the same status codes, the same fields filled in.

One script is played on both servers from their first minute on. Where they differ, the row says how and why
(architecture A4: the standard and the catalogue of bad input go before SPIRE, unless a client of SPIRE would break).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from deploy.demo.stack import LocalStack
from spiffe_core.wire._gen.spire.api.server.agent.v1 import agent_pb2
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.server.entry.v1 import entry_pb2
from spiffe_core.wire._gen.spire.api.server.svid.v1 import svid_pb2
from spiffe_core.wire.services import Stub
from tests.interop.spire import StockServer, spire_binaries

pytestmark = pytest.mark.slow

FILES = {"Entry": entry_pb2, "Agent": agent_pb2, "SVID": svid_pb2, "Bundle": bundle_pb2}


@dataclass(frozen=True)
class Row:
    """One call; `ours`, `stock` and `why` where the two answers differ."""

    name: str
    method: str
    request: dict[str, Any]
    ours: str = ""
    stock: str = ""
    why: str = ""


def differs(row: Row, ours: str, stock: str, why: str) -> Row:
    return Row(row.name, row.method, row.request, ours, stock, why)


def sid(path: str, trust_domain: str = "same.test") -> dict[str, str]:
    return {"trust_domain": trust_domain, "path": path}


def entry(path: str = "/w", *selectors: str, parent: str = "/node", **more: Any) -> dict[str, Any]:
    parts = [selector.split("=", 1) for selector in selectors or ("a=b",)]
    found = [{"type": kind, "value": value} for kind, value in parts]
    return {"spiffe_id": sid(path), "parent_id": sid(parent), "selectors": found, **more}


def create(name: str, *entries: dict[str, Any], **more: Any) -> Row:
    return Row(f"create {name}", "Entry.BatchCreateEntry", {"entries": entries, **more})


def update(name: str, *entries: dict[str, Any], **more: Any) -> Row:
    return Row(f"update {name}", "Entry.BatchUpdateEntry", {"entries": entries, **more})


def listing(name: str, **filters: Any) -> Row:
    return Row(f"list by {name}", "Entry.ListEntries", {"filter": filters})


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in entry().items() if name != key}


PROBE = "/spire-controller-manager/unsupported-fields-test"
PROBE_ENTRY = entry(PROBE, parent=PROBE, x509_svid_ttl=60, jwt_svid_ttl=60, store_svid=True, hint="hint", id="probe")
MASKED = {"hint": True}
BAD_NAMES = {"empty": "", "empty label": "a..b", "star": "*", "inner star": "a.*.b", "not ASCII": "b\xfccher.test"}
BAD_PATHS = ("/a b", "//a", "/a/", "/a/../b", "/.", "no-slash", "/spire/server", "/spire/agent/x", "/spire")

SCRIPT = [
    create("with an id", entry(id="one")),
    create("the same again", entry(id="one")),
    create("a similar one", entry(id="two")),
    differs(
        create("another one with a taken id", entry("/x", id="one")),
        "OK 6 created_at id parent_id selectors spiffe_id",
        "OK 6",
        "the entry that has the id is told, as for a similar one",
    ),
    *(create(f"with the path {path}", entry(path)) for path in BAD_PATHS),
    create("without a path", entry("")),
    create("with an upper case path", entry("/UP")),
    create("without a SPIFFE ID", without("spiffe_id")),
    create("without a parent", without("parent_id")),
    create("without selectors", without("selectors")),
    create("without a selector type", entry("/w", "=b")),
    create("without a selector value", entry("/w", "a=")),
    create("with a colon in the selector type", entry("/w", "a:b=c")),
    create("of another trust domain", {**entry(), "spiffe_id": sid("/w", "other.test")}),
    create("with a parent of another trust domain", {**entry(), "parent_id": sid("/w", "other.test")}),
    create("with an upper case trust domain", {**entry(), "spiffe_id": sid("/w", "SAME.test")}),
    create("below the server", entry("/n1", parent="/spire/server")),
    create("below an agent nobody knows", entry("/n2", parent="/spire/agent/join_token/x")),
    create("with a negative X.509 TTL", entry("/ttl", x509_svid_ttl=-1)),
    create("with a negative JWT TTL", entry("/ttl", jwt_svid_ttl=-1)),
    create("that has expired", entry("/expired", expires_at=1)),
    differs(
        create("that expired before 1970", entry("/old", expires_at=-1)), "OK 3", "OK 0", "a time before time began"
    ),
    *(create(f"with the id {bad[:9]!r}", entry("/id", id=bad)) for bad in ("bad id", "a" * 256, "a/b")),
    create("with the longest hint", entry("/hint", hint="h" * 1024)),
    create("with too long a hint", entry("/hint", hint="h" * 1025)),
    *(create(f"with a DNS name: {what}", entry("/dns", dns_names=[name])) for what, name in BAD_NAMES.items()),
    create("with a wildcard name", entry("/dns1", dns_names=["*.a.test"])),
    create("with an address as DNS name", entry("/dns2", dns_names=["192.0.2.1"])),
    create("with an upper case DNS name", entry("/dns3", dns_names=["A.test"])),
    differs(
        create("with an underscore in a name", entry("/dns4", dns_names=["a_b.test"])), "OK 3", "OK 0", "strict IDNA"
    ),
    differs(
        create("with a name twice", entry("/dns5", dns_names=["a.test", "a.test"])),
        "OK 3",
        "OK 6",
        "it is the request that is wrong",
    ),
    differs(create("with a selector twice", entry("/twice", "a=b", "a=b")), "OK 0", "OK 6", "selectors are a set"),
    create("stored, with selectors of two types", entry("/st", "a=b", "c=d", store_svid=True)),
    create("stored", entry("/st", "a=b", "a=d", store_svid=True)),
    create("with a bad federated trust domain", entry("/fed", federates_with=["BAD!"])),
    differs(
        create("that federates with nobody", entry("/fed", federates_with=["fed.test"])),
        "OK 5",
        "OK 13",
        "N-C-24: NotFound; SPIRE has no word for it",
    ),
    create("with a revision and a date of its own", entry("/rev", revision_number=9, created_at=7)),
    create("nothing"),
    create("with an output mask", entry("/mask"), output_mask={"spiffe_id": True}),
    create("with an empty output mask", entry("/mask2"), output_mask={}),
    update("one that is not there", entry("/w", id="missing")),
    differs(update("one without an id", entry()), "OK 3", "OK 5", "the field is missing"),
    update("nothing"),
    update("the hint alone", {"id": "one", "hint": "z"}, input_mask=MASKED),
    update("the hint, showing the hint", {"id": "one", "hint": "y"}, input_mask=MASKED, output_mask=MASKED),
    update("no selectors into it", {"id": "one"}, input_mask={"selectors": True}),
    update("nothing into it", {"id": "one"}),
    differs(
        update("it into the likeness of another", entry("/mask", id="one")),
        "OK 6 created_at id parent_id selectors spiffe_id",
        "OK 0",
        "two similar entries could not be told apart (A8)",
    ),
    create("the controller-manager's probe", PROBE_ENTRY),
    create("the controller-manager's probe again", PROBE_ENTRY),
    Row("delete the probe", "Entry.BatchDeleteEntry", {"ids": ["probe"]}),
    differs(
        Row("list as the controller-manager does", "Entry.ListEntries", {"page_size": 200}),
        "OK entries",
        "OK entries next_page_token",
        "SPIRE gives a token with every page that is not empty; ours says at once that this was the last",
    ),
    Row("delete some", "Entry.BatchDeleteEntry", {"ids": ["", "missing", "one", "one"]}),
    Row("delete nothing", "Entry.BatchDeleteEntry", {}),
    Row("get without an id", "Entry.GetEntry", {}),
    Row("get what is not there", "Entry.GetEntry", {"id": "missing"}),
    Row("get with a long id", "Entry.GetEntry", {"id": "x" * 300}),
    listing("no selectors", by_selectors={}),
    listing("an empty selector", by_selectors={"selectors": [{}]}),
    listing("no trust domains", by_federates_with={}),
    listing("another domain's id", by_spiffe_id=sid("/w", "other.test")),
    listing("no id", by_spiffe_id={}),
    listing("a malformed parent", by_parent_id=sid("no-slash")),
    listing("an empty hint", by_hint={"value": ""}),
    listing("not downstream", by_downstream={"value": False}),
    listing("downstream", by_downstream={"value": True}),
    differs(
        Row("list with a foreign token", "Entry.ListEntries", {"page_size": 1, "page_token": "junk"}),
        "INVALID_ARGUMENT",
        "INTERNAL",
        "it is the request that is wrong",
    ),
    Row("count no selectors", "Entry.CountEntries", {"filter": {"by_selectors": {}}}),
    Row("entries of a caller who is no agent", "Entry.GetAuthorizedEntries", {}),
    Row("a token without a life", "Agent.CreateJoinToken", {}),
    Row("a token with a negative life", "Agent.CreateJoinToken", {"ttl": -1}),
    Row("a token with a long life", "Agent.CreateJoinToken", {"ttl": 2**31 - 1}),
    Row("a token of the caller's", "Agent.CreateJoinToken", {"ttl": 60, "token": "abc"}),
    Row("the same token again", "Agent.CreateJoinToken", {"ttl": 60, "token": "abc"}),
    Row("a token for a reserved id", "Agent.CreateJoinToken", {"ttl": 60, "agent_id": sid("/spire/x")}),
    Row("a token for another domain", "Agent.CreateJoinToken", {"ttl": 60, "agent_id": sid("/x", "other.test")}),
    Row("a token for the trust domain", "Agent.CreateJoinToken", {"ttl": 60, "agent_id": sid("")}),
    *(
        Row(f"{verb} {what}", f"Agent.{verb}", request)
        for verb in ("GetAgent", "BanAgent", "DeleteAgent")
        for what, request in {
            "nobody": {},
            "a workload": {"id": sid("/x")},
            "a stranger": {"id": sid("/spire/agent/x")},
            "another domain's": {"id": sid("/spire/agent/x", "other.test")},
        }.items()
    ),
    Row("agents with an empty selector", "Agent.ListAgents", {"filter": {"by_selector_match": {"selectors": [{}]}}}),
    Row("agents before no date", "Agent.ListAgents", {"filter": {"by_expires_before": "junk"}}),
    Row("count agents before no date", "Agent.CountAgents", {"filter": {"by_expires_before": "junk"}}),
    Row("renew as an administrator", "Agent.RenewAgent", {}),
    Row("status as an administrator", "Agent.PostStatus", {}),
    Row("mint nothing", "SVID.MintX509SVID", {}),
    Row("mint junk", "SVID.MintX509SVID", {"csr": b"junk"}),
    Row("sign as an administrator", "SVID.BatchNewX509SVID", {}),
    Row("a downstream CA as an administrator", "SVID.NewDownstreamX509CA", {}),
    Row("a WIT", "SVID.MintWITSVID", {}),
    Row("the bundle with an empty mask", "Bundle.GetBundle", {"output_mask": {}}),
    Row("count bundles", "Bundle.CountBundles", {}),
]


@pytest.fixture(scope="module")
def answers(folder: Path) -> Iterator[dict[str, tuple[str, str]]]:
    """What both servers said to each row of the script."""
    binaries = spire_binaries()
    stock = StockServer(binaries, folder, "same.test")
    with LocalStack("same.test") as ours:
        try:
            ours.start_server()
            stock.start()
            yield {row.name: (ask(ours.admin_socket, row), ask(stock.socket, row)) for row in SCRIPT}
        finally:
            stock.close()


def ask(socket: Path, row: Row) -> str:
    """The answer in short: the code, the codes of a batch's results, and the names of the fields that are filled in."""
    service, method = row.method.split(".")
    descriptor = FILES[service].DESCRIPTOR.services_by_name[service]
    request = getattr(FILES[service], descriptor.methods_by_name[method].input_type.name)(**row.request)
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        try:
            answer = getattr(Stub(channel, descriptor), method)(request, timeout=10)
        except grpc.RpcError as error:
            return str(error.code().name)
    words = ["OK"]
    for result in getattr(answer, "results", ()):
        assert result.status.message, "Go clients take the message for granted"
        words += [str(result.status.code), *filled(getattr(result, "entry", None))]
    return " ".join(words if hasattr(answer, "results") else [*words, *filled(answer)])


def filled(message: Message | None) -> list[str]:
    return [] if message is None else sorted(field.name for field, _ in message.ListFields())


@pytest.mark.parametrize("row", SCRIPT, ids=[row.name for row in SCRIPT])
def test_both_servers_answer_alike(answers: dict[str, tuple[str, str]], row: Row) -> None:
    """N-C rows and spire_wire sections 3 and 5; a difference is one that was chosen."""
    ours, stock = answers[row.name]
    if not row.why:
        assert ours == stock
        return
    assert ours.startswith(row.ours), row.why
    assert stock.startswith(row.stock), row.why
    assert ours != stock, "the difference is gone; so should the row's words be"


def test_the_names_of_the_rows_are_unique() -> None:
    assert len({row.name for row in SCRIPT}) == len(SCRIPT)
