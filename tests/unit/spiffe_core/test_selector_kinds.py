"""What is misspelt, and what stands in its place (need 1: a misspelt selector is named as one)."""

import pytest

from attestors.registry import WORKLOAD_ATTESTORS
from spiffe_core.edit_distance import closest, edit_distance
from spiffe_core.selector_kinds import (
    WORKLOAD_KINDS,
    Misspelt,
    corrected,
    misspelt,
    misspelt_node_type,
    slot_of,
)
from spiffe_core.selectors import Selector


@pytest.mark.parametrize(
    ("text", "part", "right"),
    [
        ("unix:usr:web", "kind", "unix:user:web"),
        ("unix:UID:1000", "kind", "unix:uid:1000"),
        ("unx:uid:1000", "type", "unix:uid:1000"),
        ("K8S:ns:shop", "type", "k8s:ns:shop"),
        ("k8s:pod_label:app:web", "kind", "k8s:pod-label:app:web"),
        ("docker:lable:a:b", "kind", "docker:label:a:b"),
        ("k8s:namespace:shop", "kind", None),
        ("vendor:thing:x", "type", None),
    ],
)
def test_what_is_misspelt_is_corrected_where_something_is_close(text, part, right):
    selector = Selector.parse(text)
    wrong = misspelt(selector)
    assert wrong.part == part
    found = corrected(selector, wrong)
    assert (None if found is None else str(found)) == right


def test_what_attestors_make_is_not_misspelt():
    for kind, parts in WORKLOAD_KINDS.items():
        assert all(misspelt(Selector(kind, f"{part}:x")) is None for part in parts)
    assert set(WORKLOAD_ATTESTORS.names()) <= set(WORKLOAD_KINDS)
    assert misspelt(Selector("vendor", "thing:x"), types=("vendor",)) is None
    assert misspelt_node_type(Selector("x509pop", "subject:cn:a")) is None
    assert misspelt_node_type(Selector("x509pob", "subject:cn:a")) == Misspelt("type", "x509pob", "x509pop")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("unix:uid:1", "unix:uid:2", True),
        ("k8s:pod-label:app:web", "k8s:pod-label:app:db", True),
        ("k8s:pod-label:app:web", "k8s:pod-label:tier:web", False),
        ("docker:env:A=1", "docker:env:A=2", True),
        ("docker:env:A=1", "docker:env:B=1", False),
        ("unix:supplementary_gid:4", "unix:supplementary_gid:5", False),
        ("unix:uid:1", "docker:uid:1", False),
    ],
)
def test_what_has_the_place_of_what(one, other, same):
    assert (slot_of(Selector.parse(one)) == slot_of(Selector.parse(other))) is same


@pytest.mark.parametrize(
    ("left", "right", "limit", "distance"),
    [
        ("", "", 0, 0),
        ("abc", "abc", 0, 0),
        ("abc", "abd", 1, 1),
        ("abc", "ab", 1, 1),
        ("kitten", "sitting", 3, 3),
        ("unxi", "unix", 1, 1),
        ("abcd", "badc", 2, 2),
        ("kitten", "sitting", 2, None),
        ("a" * 600, "a" * 600, 5, None),
    ],
)
def test_the_distance_of_two_names(left, right, limit, distance):
    assert edit_distance(left, right, limit) == edit_distance(right, left, limit) == distance


def test_the_closest_of_many_is_found_and_nothing_far_is_close():
    assert closest("/spire/agent/x509pop/abd", ["/other", "/spire/agent/x509pop/abc", "/spire/agent/x509pop/abce"]) == (
        "/spire/agent/x509pop/abc"
    )
    assert closest("abc", ["xyz", "uvw"]) is None
    assert closest("abc", []) is None
