"""What the documentation says is what the code does: keys, commands, flags, links.

`MUNIMENT_WRITE_DOCS=1 pytest tests/architecture` writes what is generated anew.
"""

import dataclasses
import importlib
import inspect
import os
import re
import shlex
import tomllib
import typing
from datetime import timedelta
from pathlib import Path

import click
import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import identity_server.settings
import node_agent.settings
from spiffe_core.runtime.settings import format_duration, resolved
from spiffe_core.terminal.flags import Flag
from tests.doubles.command_lines import parsed
from tests.doubles.pages import COMMANDS, DOCS, LEAVES, ROOT, code, names, rows, section

PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMMON_FLAGS = {"--socket-path", "--instance", "--output"}
DAEMONS = {
    "Server": (identity_server.settings.ServerSettings, ("identity_server.node_verifiers",)),
    "Agent": (node_agent.settings.AgentSettings, ("node_agent.workload_attestors", "node_agent.node_provers")),
}


def nested(annotation):
    for candidate in (annotation, *typing.get_args(annotation)):
        if inspect.isclass(candidate) and issubclass(candidate, BaseModel):
            return candidate
    return None


def keys_of(model, prefix=""):
    """Each key of a settings tree with its default as TOML; None where the default depends on the machine."""
    for name, info in model.model_fields.items():
        inner = nested(info.annotation)
        if name == "attestors":
            continue
        if inner is not None:
            many = "NAME." if typing.get_origin(info.annotation) is dict else ""
            yield from keys_of(inner, f"{prefix}{name}.{many}")
        elif info.default_factory is not None or info.default is None:
            yield prefix + name, None
        else:
            yield prefix + name, info.default


def attestor_keys(groups):
    """The keys of each attestor's table, by the entry points this distribution declares."""
    for group in groups:
        for name, place in PYPROJECT["project"]["entry-points"][group].items():
            module, _, plugin = place.partition(":")
            yield from keys_of_table(getattr(importlib.import_module(module), plugin).Settings, f"attestors.{name}.")


def keys_of_table(settings, prefix):
    """Tables in tables too: `clusters.NAME.audience` for a field that maps names to another dataclass."""
    types = typing.get_type_hints(settings)
    for field in dataclasses.fields(settings):
        inner = [one for one in typing.get_args(types[field.name]) if dataclasses.is_dataclass(one)]
        if inner:
            yield from keys_of_table(inner[0], f"{prefix}{field.name}.NAME.")
        else:
            yield prefix + field.name, field.default


def as_toml(value):
    if value is PydanticUndefined:
        return "*required*"
    if isinstance(value, timedelta):
        return f'"{format_duration(value)}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{item}"' for item in value) + "]"
    if isinstance(value, str):
        return f'"{value}"'
    return (
        str(getattr(value, "get_secret_value", lambda: value)() or '""')
        if hasattr(value, "get_secret_value")
        else str(value)
    )


@pytest.mark.parametrize("daemon", DAEMONS)
def test_every_key_of_a_configuration_file_is_documented_with_its_default(daemon):
    """A key without a row in docs/configuration.md cannot ship, nor a row without a key."""
    model, groups = DAEMONS[daemon]
    documented = {}
    for cells in rows(section((DOCS / "configuration.md").read_text(), f"## {daemon}")):
        assert len(cells) == 4, f"key, type, default, rule: {cells}"
        assert cells[1], f"{cells[0]} has no type"
        documented[code(cells[0])[0]] = cells[2].replace("`", "")
    expected = dict([*keys_of(model), *attestor_keys(groups)])
    assert set(documented) == set(expected)
    wrong = {
        key: (documented[key], as_toml(default))
        for key, default in expected.items()
        if default is not None and documented[key] != as_toml(default)
    }
    assert not wrong, "key: (documented default, real default)"


NOT_SHOWN = {
    "server.toml": {
        key
        for key, _ in keys_of(identity_server.settings.ServerSettings)
        if re.match(r"(jwt|wit)\.|database\.[pt]", key)
    },
    "agent.toml": {"join_token"},
}
"""What the example files leave to the documentation: the fewer the better."""


@pytest.mark.parametrize(
    ("file", "module", "examples"),
    [
        ("server.toml", identity_server.settings, set()),
        ("agent.toml", node_agent.settings, {"trust_bundle_path", "join_token_file", "admin_socket_path"}),
    ],
)
def test_the_example_files_load_and_hold_the_defaults(file, module, examples):
    """deploy/config/*.toml are valid, show the keys, and say nothing but the defaults, apart from the marked examples."""
    path = ROOT / "deploy" / "config" / file
    settings = module.load(path)
    shown, default = resolved(settings), resolved(module.from_mapping({"trust_domain": "example.org"}))
    for key in {"data_dir", "socket_path", "attestors", *examples}:  # by machine, by plugin, by example
        shown.pop(key, None)
        default.pop(key, None)
    if file == "server.toml":
        assert shown["svid"].pop("agent_ttl") == default["svid"]["default_x509_ttl"]
        assert default["svid"].pop("agent_ttl") is None
    assert shown == default
    text = path.read_text()
    missing = {key for key, _ in keys_of(type(settings)) if not is_shown(text, key)}
    assert missing - NOT_SHOWN[file] == set(), f"{file} does not show them"


def is_shown(text, key):
    """Whether the file has the key, as a line, in an inline table, or commented out."""
    *tables, leaf = key.split(".")
    if len(tables) == 1 and f"[{tables[0]}]" in text:
        text = re.split(r"^#? ?\[", text.partition(f"[{tables[0]}]")[2], maxsplit=1, flags=re.MULTILINE)[0]
    return bool(re.search(rf"^(?:# )?(?:.*[{{,] ?)?{leaf} *=", text, re.MULTILINE))


def own_flags(command):
    return {flag.canonical: flag for flag in command.params if isinstance(flag, Flag) and not flag.hidden}


def written(words, command):
    """A section for a command that has none yet, out of its own help."""
    lines = [f"### {words}", "", *inspect.cleandoc(command.help or "").splitlines(), ""]
    if own_flags(command).keys() - COMMON_FLAGS:
        lines += ["| flag | value | meaning |", "|---|---|---|"]
    for name, flag in own_flags(command).items():
        if name not in COMMON_FLAGS:
            given = ", ".join(f"`{one}`" for one in [name, *([f"-{flag.spire}"] if flag.spire else [])])
            value = "switch" if flag.switch else flag.make_metavar(click.Context(command)).lower()
            lines.append(f"| {given} | {value.replace('|', ', ')} | {(flag.help or '').rstrip('.')} |")
    return "\n".join(lines).rstrip() + "\n\n"


def write_missing_sections():
    page = DOCS / "cli.md"
    text = page.read_text()
    order = list(LEAVES)
    for index, words in enumerate(order):
        if f"### {words}\n" not in text:
            later = [f"### {one}\n" for one in order[index + 1 :] if one.split()[0] == words.split()[0]]
            before = next((text.index(one) for one in later if one in text), None)
            if before is None:
                before = text.index("## Agent\n") if words.startswith("identity-server") else len(text)
            text = text[:before] + written(words, LEAVES[words]) + text[before:]
    page.write_text(text)


if os.environ.get("MUNIMENT_WRITE_DOCS"):
    write_missing_sections()


@pytest.mark.parametrize("words", LEAVES)
def test_every_command_and_flag_is_documented(words):
    """A flag without a row in docs/cli.md cannot ship, nor a row without a flag; SPIRE's name stands beside ours."""
    flags = own_flags(LEAVES[words])
    text = section((DOCS / "cli.md").read_text(), f"### {words}")
    documented = {}
    for cells in rows(text):
        given = code(cells[0])
        documented |= {name: given for name in given if name.startswith("--")}
        assert cells[2], f"{given} has no meaning"
    assert set(documented) - COMMON_FLAGS == set(flags) - COMMON_FLAGS
    for name, given in documented.items():
        if len([one for one in given if one.startswith("--")]) == 1 and flags[name].spire:
            assert f"-{flags[name].spire}" in given
    assert re.search(r"^[A-Z][^\n]*\.$", text, re.MULTILINE), "one sentence on what it does"


def test_no_page_documents_a_command_that_is_not_there():
    headings = re.findall(r"^### (.+)$", (DOCS / "cli.md").read_text(), re.MULTILINE)
    assert headings == list(LEAVES)


def test_the_common_flags_are_documented_once():
    documented = {
        name for cells in rows(section((DOCS / "cli.md").read_text(), "## Common flags")) for name in code(cells[0])
    }
    assert documented >= COMMON_FLAGS | {"--version", "--help"}


def typed_commands():
    """Each command of ours that a page shows behind a prompt, as words."""
    for page in PAGES:
        for block in re.findall(r"^ *```console\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL):
            joined = re.sub(r"\$\([^()]*\)", "0", block.replace("\\\n", " "))
            for line in re.findall(r"^ *\$ (.+)$", joined, re.MULTILINE):
                for part in re.split(r"\s(?:\||&&|>)\s?", line):
                    words = shlex.split(part)
                    at = next((i for i, word in enumerate(words) if Path(word).name in COMMANDS), None)
                    if at is not None:
                        yield str(page.relative_to(ROOT)), [Path(words[at]).name, *words[at + 1 :]]


TYPED = list(typed_commands())


def test_the_readme_walks_through_real_commands():
    assert len([page for page, _ in TYPED if page == "README.md"]) > 12


@pytest.mark.parametrize(
    ("page", "words"), TYPED, ids=lambda value: value if isinstance(value, str) else " ".join(value[:4])
)
def test_every_command_that_a_page_shows_exists(page, words):
    """README's tour and every other page: the command is in the click tree, and takes these flags."""
    parsed(words, page)


def anchors(page):
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    plain = (re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()) for heading in headings)
    return {text.strip().replace(" ", "-") for text in plain}


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_link_inside_the_project_resolves(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), target
        assert path.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(path), target


def test_every_decision_is_indexed_by_its_own_title():
    index = (DOCS / "adr" / "README.md").read_text()
    for page in sorted((DOCS / "adr").glob("[0-9]*.md")):
        title = re.match(r"# \d+\. (.+)\n", page.read_text())
        assert title, f"{page.name} begins with `# N. Title`"
        assert f"| [{page.name[:4]}]({page.name}) | {title[1]} |" in index, page.name


def test_every_page_is_reachable_from_the_readme():
    seen, queue = set(), [ROOT / "README.md"]
    while queue:
        page = queue.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        queue += [
            (page.parent / target.partition("#")[0]).resolve()
            for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text())
            if not re.match(r"[a-z]+:|#", target)
        ]
    assert set(PAGES) <= seen


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_pages_name_no_path_of_somebodys_machine(page):
    assert not re.search(r"(?<!\w)/(?:home|root|work|Users)/\w", page.read_text())  # but the API has pki/root/sign-...


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_table_is_one(page):
    """A table that an empty line cuts in two, or that text follows at once, is shown as lines full of bars."""
    lines = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL).splitlines()
    for before, line, after in zip(["", *lines], lines, [*lines[1:], ""], strict=False):
        if line.startswith("|"):
            assert before.startswith("|") or re.fullmatch(r"\|[-| ]+\|", after), f"begins without a header: {line}"
            assert not after or after.startswith(("|", "<!--")), f"stands right below a table: {after}"
