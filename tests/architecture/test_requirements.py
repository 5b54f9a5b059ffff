"""What is installed is what was locked: every requirement pinned, with hashes, and nothing fetched beside them (S76).

`make audit` asks for known weaknesses of what is locked; it needs the network, so it is no test.
"""

import re
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements"
LOCKS = sorted(REQUIREMENTS.glob("*.txt"))
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;]+)(\s*;\s*(?P<marker>.*?))?")
INSTALLS = re.compile(r"\bpip (?:--python \S+ )?(?:install|wheel|download)\b((?:[^\n\\&]|\\\n)*)")
OURS = {"muniment", "pip"}
BUILDS = [ROOT / "Makefile", *sorted((ROOT / "deploy").rglob("*.Containerfile"))]


def locked(file):
    """Name -> (version, hashes) of a lock file, in which every line must be one requirement and its hashes."""
    found = {}
    text = re.sub(r"\\\n", " ", file.read_text())
    for line in (one.strip() for one in text.splitlines()):
        if not line or line.startswith("#"):
            continue
        hashes = HASH.findall(line)
        wanted = LINE.fullmatch(HASH.sub("", line).strip())
        assert wanted is not None, f"{file.name}: {line[:120]}"
        found[canonicalize_name(wanted["name"])] = wanted["version"], hashes
    return found


def asked(file):
    """The requirements of an input file, with those of the files it includes."""
    for line in (one.strip() for one in file.read_text().splitlines()):
        if line.startswith("-r "):
            yield from asked(file.with_name(line.removeprefix("-r ")))
        elif line and not line.startswith("#"):
            yield Requirement(line)


@pytest.mark.parametrize("file", LOCKS, ids=lambda file: file.name)
def test_every_requirement_is_pinned_with_hashes(file):
    """S76: no index, no address, no range; a package that was replaced upstream does not install."""
    assert len(locked(file)) > 10
    assert [name for name, (_, hashes) in locked(file).items() if not hashes] == []


@pytest.mark.parametrize("file", LOCKS, ids=lambda file: file.name)
def test_a_lock_holds_what_its_input_asks_for(file):
    """S76: who edits the input runs `make lock`."""
    found = locked(file)
    for wanted in asked(file.with_suffix(".in")):
        version, _ = found[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(version, prereleases=True), wanted


def test_the_package_asks_for_what_is_locked():
    """S76: an installation from the index gets no requirement that was never locked, and the build none besides."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    runtime = {str(one) for one in asked(REQUIREMENTS / "runtime.in")}
    assert {str(Requirement(one)) for one in project["project"]["dependencies"]} <= runtime
    optional = [one for group in project["project"]["optional-dependencies"].values() for one in group]
    assert {str(Requirement(one)) for one in optional} <= {str(one) for one in asked(REQUIREMENTS / "dev.in")}
    assert {str(Requirement(one)) for one in project["build-system"]["requires"]} <= runtime


def test_no_build_installs_anything_else():
    """S76: from a lock with its hashes, or ours without dependencies and without a build environment of its own."""
    flags = re.search(r"^PIP_FLAGS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert flags is not None
    seen = 0
    for file in BUILDS:
        for words in INSTALLS.findall(file.read_text()):
            seen += 1
            line = words.replace("$(PIP_FLAGS)", flags[1])
            by_lock = "--require-hashes" in line and "-r " in line
            assert by_lock or {"--no-deps", "--no-build-isolation"} <= set(line.split()), f"{file.name}: pip{words}"
    assert seen == 8


def test_the_tests_run_with_what_is_locked():
    """S76: nothing stands in the environment that no lock names, in no other version."""
    found = locked(REQUIREMENTS / "dev.txt")
    other = {
        (name, one.version)
        for one in distributions()
        if (name := canonicalize_name(one.metadata["Name"])) not in OURS
        if found.get(name, ("", ()))[0] != one.version
    }
    assert other == set()
