"""Values survive their rows; broken rows are refused by name."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from identity_server.store.log_age import LogAge
from identity_server.store.mapping import agent_of, bundle_of, bundle_values, digest_of_selector, entry_of, entry_values
from spiffe_core.errors import CorruptState
from spiffe_core.selectors import Selector
from tests.builders import make_bundle, make_entry

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
SELECTORS = st.frozensets(st.builds(Selector, TEXT.filter(lambda one: ":" not in one), TEXT), min_size=1, max_size=5)


@given(selectors=SELECTORS, hint=TEXT)
def test_any_text_survives(selectors, hint: str) -> None:
    """S63"""
    entry = make_entry(selectors=selectors, hint=hint)
    assert entry_of(SimpleNamespace(**entry_values(entry))) == entry


@given(one=SELECTORS, two=SELECTORS)
def test_selectors_have_one_digest_each(one, two) -> None:
    digests = {digest_of_selector(selector) for selector in one | two}
    assert len(digests) == len(one | two)


def test_a_bundle_survives() -> None:
    bundle = make_bundle().with_x509_tainted(make_bundle().x509_authorities[0].key_id)
    assert bundle_of(SimpleNamespace(**bundle_values(bundle))) == bundle


@pytest.mark.parametrize(
    "spoiled",
    [
        {"spiffe_id": b"https://example.org/x"},
        {"selectors": b"[]"},
        {"selectors": b"{"},
        {"selectors": b'[["a"]]'},
        {"hint": b"\xff"},
        {"x509_svid_ttl": -1},
        {"dns_names": b"[1]"},
        {"federates_with": b'["UPPER"]'},
    ],
)
def test_a_broken_entry_row_is_named(spoiled: dict) -> None:
    row = SimpleNamespace(**{**entry_values(make_entry(id="broken")), **spoiled})
    with pytest.raises(CorruptState, match=r"broken.*table entry.*backup"):
        entry_of(row)


def test_other_broken_rows_are_named_too() -> None:
    with pytest.raises(CorruptState, match="table bundle"):
        bundle_of(SimpleNamespace(trust_domain=b"example.org", document=b"{}"))
    with pytest.raises(CorruptState, match="table agent"):
        agent_of(SimpleNamespace(spiffe_id=b"nothing"))


def test_age_is_learnt_by_looking() -> None:
    age = LogAge()
    assert age.newest_before(100) == 0
    age.note(10, 5)
    age.note(20, 9)
    assert [age.newest_before(moment) for moment in (9, 10, 19, 20, 99)] == [0, 5, 5, 9, 9]
    for number in range(2_000):
        age.note(100 + number, number)
    assert age.newest_before(50) == 0, "what was seen too long ago is forgotten"
