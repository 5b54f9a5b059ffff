"""Plugins are found by entry point, imported only when named, and refused with the rule they break."""

from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest

from attestors.api import Findings, WorkloadAttestor
from attestors.registry import NODE_PROVERS, NODE_VERIFIERS, WORKLOAD_ATTESTORS, Registry, settings_from
from spiffe_core.errors import ConfigError

GROUP = "test.attestors"


@dataclass(frozen=True)
class Settings:
    depth: int = 1
    verbose: bool = False
    socket: str = "/run/x.sock"


class Good:
    name = "good"
    Settings = Settings

    def __init__(self, settings, ports=None):
        self.settings, self.ports = settings, ports

    def attest(self, subject, deadline):
        return Findings(frozenset())


class Misnamed(Good):
    name = "other"


class Mutable(Good):
    name = "mutable"

    @dataclass
    class Settings:
        depth: int = 1


class Silent:
    name = "silent"
    Settings = Settings


NOT_A_CLASS = "text"


class Point:
    """An entry point that remembers whether it was imported."""

    def __init__(self, name, target, value=None):
        self.name, self.value, self.target, self.loaded = name, value or f"tests:{name}", target, False

    def load(self):
        self.loaded = True
        if isinstance(self.target, Exception):
            raise self.target
        return self.target


def registry(*points):
    return Registry(GROUP, WorkloadAttestor, points)


def test_the_built_in_plugins_are_declared_by_entry_points():
    assert "unix" in WORKLOAD_ATTESTORS.names()
    assert "join_token" in NODE_VERIFIERS.names()
    assert "join_token" in NODE_PROVERS.names()


def test_only_the_named_plugin_is_imported():
    good, broken = Point("good", Good), Point("broken", ImportError("no such library"))
    plugins = registry(good, broken)
    assert plugins.names() == ("broken", "good")
    assert not good.loaded
    assert plugins.load("good") is Good
    assert not broken.loaded


def test_a_plugin_is_built_from_its_configuration_table_and_its_ports():
    made = registry(Point("good", Good)).build("good", {"depth": 3, "verbose": True}, ports="ports")
    assert Settings(depth=3, verbose=True) == made.settings
    assert made.ports == "ports"
    assert Settings() == registry(Point("good", Good)).build("good").settings


def test_an_entry_point_of_the_standard_library_fits():
    found = Registry(GROUP, WorkloadAttestor, [EntryPoint("unix", "attestors.workload.unix:UnixAttestor", GROUP)])
    assert found.build("unix").name == "unix"


REFUSED = {
    "an unknown name lists the known ones": ([Point("good", Good)], "god", r"known: good"),
    "an unknown name says when there are none": ([], "god", r"known: none"),
    "two declarations of one name are refused": (
        [Point("good", Good, "a:A"), Point("good", Good, "b:B")],
        "good",
        r"declared by a:A and b:B",
    ),
    "a plugin that cannot be imported names the reason": (
        [Point("good", ImportError("no module named z"))],
        "good",
        r"cannot be imported: no module named z",
    ),
    "a missing attribute is refused": ([Point("good", AttributeError("no Good"))], "good", r"cannot be imported"),
    "a plugin must be a class": ([Point("good", NOT_A_CLASS)], "good", r"is not a class"),
    "a plugin must know its own name": ([Point("good", Misnamed)], "good", r"calls itself 'other'"),
    "settings must be frozen": ([Point("mutable", Mutable)], "mutable", r"no frozen dataclass"),
    "a plugin must follow the protocol": ([Point("silent", Silent)], "silent", r"lacks attest\(\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    points, name, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message) as refusal:
        registry(*points).build(name)
    assert name == refusal.value.field


def test_the_same_declaration_seen_twice_is_one():
    """An editable install and its metadata may both list a distribution."""
    assert registry(Point("good", Good, "a:A"), Point("good", Good, "a:A")).load("good") is Good


BAD_SETTINGS = {
    "unknown key with a near one": ({"dept": 1}, r"attestors\.good\.dept: unknown key; did you mean 'depth'\?"),
    "unknown key far from all": ({"zzz": 1}, r"known: depth, verbose, socket"),
    "bool is not a number": ({"depth": True}, r"attestors\.good\.depth: must be a whole number"),
    "number is not a bool": ({"verbose": 1}, r"attestors\.good\.verbose: must be true or false"),
    "list is not a text": ({"socket": ["a"]}, r"attestors\.good\.socket: must be a text"),
    "too many keys": ({str(n): n for n in range(101)}, r"more than 100 keys"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_settings_name_the_key_and_the_rule(case):
    options, message = BAD_SETTINGS[case]
    with pytest.raises(ConfigError, match=message):
        settings_from(Settings, options, "good")


def test_a_missing_required_setting_is_a_configuration_error():
    @dataclass(frozen=True)
    class Strict:
        cluster: str

    with pytest.raises(ConfigError, match="cluster"):
        settings_from(Strict, {}, "strict")
