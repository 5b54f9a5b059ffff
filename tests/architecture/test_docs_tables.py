"""The generated tables of the documentation are those of the code; events and metrics are all told."""

import ast
import inspect
import json
import os
import re

from google.protobuf.message_factory import GetMessageClass

import identity_server.rpc_services
import identity_server.settings
from identity_server.domain.access import ACCESS
from identity_server.domain.audit import AuditEvent
from identity_server.domain.lint_codes import MEANINGS as LINT
from spiffe_core.errors import IdentityError, Unauthenticated, Unimplemented
from spiffe_core.explanation_codes import MEANINGS as CAUSES
from tests.doubles.pages import DOCS, ROOT, code, rows, section
from workload_api.service import HEADER, WorkloadApi
from workload_api.service import SERVICE as WORKLOAD_API


class _Call:
    """The part of a call's context that is read before the caller is known."""

    def invocation_metadata(self):
        return (HEADER,)


def served_by_the_server():
    """Full service name -> class, as the composition root wires them."""
    module = identity_server.rpc_services
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "handlers":
            descriptor, implementation = node.args
            yield getattr(module, descriptor.id).full_name, getattr(module, implementation.func.id)


async def offered_to_workloads(name):
    """Whether the Workload API gets as far as asking who calls."""

    def nobody(_context):
        raise Unauthenticated("stop here")

    api = WorkloadApi(None, nobody, None, jwt=object(), wit=object())
    request = GetMessageClass(WORKLOAD_API.methods_by_name[name].input_type)()
    try:
        answer = getattr(api, name)(request, _Call())
        await (anext(answer) if inspect.isasyncgen(answer) else answer)
    except Unimplemented:
        return False
    except IdentityError:
        return True
    raise AssertionError(name)


def server_table():
    served = dict(served_by_the_server())
    lines = ["| service | answers | Unimplemented |", "|---|---|---|"]
    services = dict.fromkeys(method.split("/")[1] for method in ACCESS)
    for service in services:
        methods = [method.split("/")[2] for method in ACCESS if method.split("/")[1] == service]
        here = [name for name in methods if hasattr(served.get(service), name)]
        absent = [name for name in methods if name not in here]
        lines.append(f"| `{service}` | {', '.join(here) or 'none'} | {', '.join(absent) or 'none'} |")
    return lines


async def agent_table():
    lines = ["| service | answers | Unimplemented |", "|---|---|---|"]
    methods = {method.name: await offered_to_workloads(method.name) for method in WORKLOAD_API.methods}
    here, absent = ([name for name, is_offered in methods.items() if is_offered is wanted] for wanted in (True, False))
    lines.append(f"| `{WORKLOAD_API.full_name}` | {', '.join(here)} | {', '.join(absent) or 'none'} |")
    return lines


def access_table():
    lines = ["| method | may be called by |", "|---|---|"]
    lines += [
        f"| `{method.removeprefix('/').removeprefix('spire.api.server.')}` | {', '.join(sorted(kind.value for kind in kinds))} |"
        for method, kinds in ACCESS.items()
    ]
    return lines


def filled(text, name, lines):
    """The page with the table in its place."""
    block = f"<!-- {name} -->\n" + "\n".join(lines) + f"\n<!-- /{name} -->"
    text, count = re.subn(rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _: block, text, flags=re.DOTALL)
    assert count == 1, f"no place for the table {name!r}"
    return text


async def test_the_tables_of_rpcs_are_those_of_the_code():
    """docs/compatibility.md: which RPCs are there, which answer Unimplemented, and who may call what."""
    page = DOCS / "compatibility.md"
    text = page.read_text()
    tables = {"server-rpcs": server_table(), "workload-api": await agent_table(), "access": access_table()}
    for name, lines in tables.items():
        text = filled(text, name, lines)
    if os.environ.get("MUNIMENT_WRITE_DOCS"):
        page.write_text(text)
    assert page.read_text() == text, "run with MUNIMENT_WRITE_DOCS=1 to write the tables anew"


def test_the_tables_of_codes_are_those_of_the_code():
    """docs/explain.md: the root causes of `explain`, and what `entry lint` finds."""
    page = DOCS / "explain.md"
    text = page.read_text()
    for name, meanings in (("explain-codes", CAUSES), ("lint-codes", LINT)):
        lines = ["| code | meaning |", "|---|---|"]
        lines += [f"| `{code.value}` | {meaning} |" for code, meaning in meanings.items()]
        text = filled(text, name, lines)
    if os.environ.get("MUNIMENT_WRITE_DOCS"):
        page.write_text(text)
    assert page.read_text() == text, "run with MUNIMENT_WRITE_DOCS=1 to write the tables anew"


def test_every_audit_event_is_documented():
    """Whoever reads the audit log finds each kind of line in docs/operations.md."""
    documented = {
        name
        for cells in rows(section((DOCS / "operations.md").read_text(), "## Logs and audit"))
        for name in code(cells[0])
    }
    assert documented - {"event", "audit_gap"} == {kind.event for kind in AuditEvent.__subclasses__()}


def test_every_metric_of_spire_is_emitted_or_the_documentation_says_why_not():
    """docs/compatibility.md lists what is missing, no more and no less."""
    table = rows(section((DOCS / "compatibility.md").read_text(), "## Metrics"))
    missing = {name for cells in table for name in code(cells[0]) if name.startswith("spire_")}
    sources = {
        "spire_server": [ROOT / "identity_server" / "monitoring.py", ROOT / "identity_server" / "store" / "metered.py"],
        "spire_agent": [ROOT / "node_agent" / "monitoring.py"],
    }
    vectors = json.loads((ROOT / "tests" / "vectors" / "metric_names.json").read_text())["documented"]
    absent = set()
    for prefix, names in vectors.items():
        both = [ROOT / "spiffe_core" / "runtime" / "monitor.py", ROOT / "identity_server" / "daemon.py"]
        text = "".join(path.read_text() for path in [*sources[prefix], *both])
        absent |= {f"{prefix}_{name}" for name in names if f'"{name.removeprefix("datastore_")}"' not in text}
    assert missing == absent
