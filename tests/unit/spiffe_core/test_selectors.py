"""Selectors."""

from __future__ import annotations

import pytest

from spiffe_core.errors import InvalidSelector
from spiffe_core.selectors import MAX_TYPE_BYTES, MAX_VALUE_BYTES, Selector, canonical, selector_digest


def test_the_first_colon_separates_type_and_value():
    selector = Selector.parse("k8s:pod-label:app:web")
    assert (selector.type, selector.value) == ("k8s", "pod-label:app:web")
    assert str(selector) == "k8s:pod-label:app:web"


@pytest.mark.parametrize(
    ("text", "field", "rule"),
    [
        ("unix", "selectors", "has no ':'"),
        ("", "selectors", "has no ':'"),
        (":x", "selectors.type", "is empty"),
        ("unix:", "selectors.value", "is empty"),
        ("t" * (MAX_TYPE_BYTES + 1) + ":x", "selectors.type", "more than 128 bytes"),
        ("t:" + "x" * (MAX_VALUE_BYTES + 1), "selectors.value", "more than 8192 bytes"),
        ("t:" + "é" * MAX_VALUE_BYTES, "selectors.value", "more than 8192 bytes"),
        ("t:\udcff", "selectors.value", "not valid UTF-8"),
    ],
)
def test_malformed_selectors_are_refused_naming_the_part(text, field, rule):
    with pytest.raises(InvalidSelector) as refusal:
        Selector.parse(text)
    assert refusal.value.field == field
    assert rule in refusal.value.public


def test_the_limits_themselves_are_accepted():
    assert Selector("t" * MAX_TYPE_BYTES, "é" * (MAX_VALUE_BYTES // 2)).value


def test_a_type_has_no_colon():
    with pytest.raises(InvalidSelector, match="must not contain ':'"):
        Selector("a:b", "c")


def test_the_canonical_form_is_sorted_and_without_repetition():
    a, b = Selector("unix", "uid:1"), Selector("unix", "uid:2")
    assert canonical([b, a, b]) == (a, b)


def test_the_digest_depends_on_the_set_alone():
    a, b = Selector("unix", "uid:1"), Selector("unix", "uid:2")
    assert selector_digest([b, a, a]) == selector_digest({a, b})
    assert len(selector_digest([])) == 32


def test_sets_that_print_alike_have_different_digests():
    assert selector_digest([Selector("a", "b:c")]) != selector_digest([Selector("a", "b"), Selector("c", "d")])
    assert selector_digest([Selector("ab", "c")]) != selector_digest([Selector("a", "bc")])
    assert selector_digest([Selector("a", "b")]) != selector_digest([])
