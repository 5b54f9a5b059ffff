"""Laws of the converters and masks, for any value and any message."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spiffe_core.entry import RegistrationEntry
from spiffe_core.errors import IdentityError, InvalidBundle, InvalidEntry, Kind
from spiffe_core.selectors import Selector, selector_digest
from spiffe_core.spiffe_id import SpiffeId, TrustDomain
from spiffe_core.wire import convert
from spiffe_core.wire._gen.spire.api.types import bundle_pb2, entry_pb2
from spiffe_core.wire.entry_bytes import entry_bytes, tags, varint
from spiffe_core.wire.status import MAX_TEXT, item_status

TD = TrustDomain("example.org")

segments = st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,8}", fullmatch=True)
paths = st.lists(segments, min_size=1, max_size=4).map(lambda parts: "/w/" + "/".join(parts))
ids = paths.map(lambda path: SpiffeId(TD, path))
names = st.from_regex(r"[a-z][a-z0-9]{0,8}\.test", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
selectors = st.builds(Selector, st.just("unix"), texts)
ttls = st.integers(0, 2**31 - 1)
times = st.integers(0, 2**63 - 1)
store = st.booleans()


@st.composite
def entries(draw):
    store_svid = draw(st.booleans())
    return RegistrationEntry(
        id=draw(st.from_regex(r"[A-Za-z0-9._-]{1,20}", fullmatch=True)),
        spiffe_id=draw(ids),
        parent_id=draw(ids),
        selectors=draw(st.frozensets(selectors, min_size=1, max_size=5)),
        x509_svid_ttl=draw(ttls),
        jwt_svid_ttl=draw(ttls),
        federates_with=tuple(draw(st.lists(names.map(TrustDomain), max_size=3, unique=True))),
        admin=draw(st.booleans()),
        downstream=draw(st.booleans()),
        expires_at=draw(times),
        dns_names=tuple(draw(st.lists(names, max_size=3, unique=True))),
        revision_number=draw(times),
        store_svid=store_svid,
        hint=draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=20)),
        created_at=draw(times),
        disable_x509_svid_prefetch=draw(st.booleans()) and not store_svid,
        jwt_svid_include_jti=draw(st.booleans()),
    )


BITS = [bit.name for bit in entry_pb2.EntryMask.DESCRIPTOR.fields]
masks = st.sets(st.sampled_from(BITS)).map(lambda bits: entry_pb2.EntryMask(**dict.fromkeys(bits, True)))


def same(field, left, right):
    """One field equal by value and by presence."""
    descriptor = entry_pb2.Entry.DESCRIPTOR.fields_by_name[field]
    if descriptor.has_presence and left.HasField(field) != right.HasField(field):
        return False
    return getattr(left, field) == getattr(right, field)


@given(entries())
def test_from_proto_undoes_to_proto(entry):
    message = entry_pb2.Entry.FromString(convert.entry_to_proto(entry).SerializeToString())
    assert convert.entry_from_proto(message, trust_domain=TD) == entry


@given(entries())
def test_finished_bytes_are_those_of_the_message(entry):
    """B9: what stores and batches send is what protobuf makes of the entry, to the byte."""
    assert entry_bytes(entry) == convert.entry_to_proto(entry).SerializeToString(deterministic=True)


@given(st.integers(0, 2**63 - 1))
def test_a_number_on_the_wire_is_protobufs(number):
    made = entry_pb2.Entry(expires_at=number).SerializeToString()
    assert made in {b"", tags(entry_pb2.Entry)["expires_at"] + varint(number)}


@given(entries(), times, times)
def test_a_stamped_entry_is_the_same_but_for_the_stamp(entry, revision, created):
    """Its digests too, whether they were asked for before or not; its bytes are its own."""
    before = entry_bytes(entry)
    stamped = entry.stamped(revision_number=revision, created_at=created)
    assert stamped == replace(entry, revision_number=revision, created_at=created)
    assert (stamped.similarity, stamped.selectors_digest) == (entry.similarity, selector_digest(entry.selectors))
    assert entry_bytes(stamped) == convert.entry_to_proto(stamped).SerializeToString(deterministic=True)
    assert entry_bytes(entry) == before


@given(entries(), masks)
def test_every_subset_of_fields_has_the_unmasked_values(entry, mask):
    """S22: what a mask lets through equals the unmasked value; the rest is absent; the id always stays."""
    whole = convert.entry_to_proto(entry)
    masked = convert.mask_entry(whole, mask)
    assert masked.id == whole.id
    for field in BITS:
        assert same(field, masked, whole if getattr(mask, field) else entry_pb2.Entry())


@given(entries(), entries(), masks)
def test_an_update_takes_exactly_the_fields_of_its_mask(existing, incoming, mask):
    """S22 for input masks: masked fields from the request, all others and the server's own from the record."""
    try:
        updated = convert.apply_entry_mask(existing, convert.entry_to_proto(incoming), mask, trust_domain=TD)
    except InvalidEntry as refusal:  # the two halves may contradict each other
        assert refusal.field == "disable_x509_svid_prefetch"  # noqa: PT017
        return
    result, old, new = (convert.entry_to_proto(entry) for entry in (updated, existing, incoming))
    assert updated.id == existing.id
    for field in BITS:
        taken = getattr(mask, field) and field not in {"revision_number", "created_at"}
        assert same(field, result, new if taken else old)


@given(entries(), entries())
def test_an_update_without_a_mask_is_an_update_of_every_field(existing, incoming):
    everything = entry_pb2.EntryMask(**dict.fromkeys(BITS, True))
    message = convert.entry_to_proto(incoming)
    assert convert.apply_entry_mask(existing, message, None, trust_domain=TD) == convert.apply_entry_mask(
        existing, message, everything, trust_domain=TD
    )


wild = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
wild_ids = st.fixed_dictionaries({}, optional={"trust_domain": st.just("example.org") | wild, "path": paths | wild})
wild_entries = st.fixed_dictionaries(
    {},
    optional={
        "id": wild,
        "spiffe_id": wild_ids,
        "parent_id": wild_ids,
        "selectors": st.lists(st.fixed_dictionaries({}, optional={"type": wild, "value": wild}), max_size=3),
        "x509_svid_ttl": st.integers(-(2**31), 2**31 - 1),
        "expires_at": st.integers(-(2**63), 2**63 - 1),
        "federates_with": st.lists(wild, max_size=3),
        "dns_names": st.lists(wild, max_size=3),
        "hint": wild,
    },
).map(lambda fields: entry_pb2.Entry(**fields))


@given(wild_entries)
def test_reading_an_entry_is_total(message):
    """Any message gives an entry that writes back, or an InvalidEntry with a field and a text that fits a status."""
    outcome = read(message)
    if isinstance(outcome, InvalidEntry):
        assert outcome.field
        assert outcome.field.split("[")[0] in outcome.public
        assert item_status(outcome).code == 3
    else:
        assert convert.entry_from_proto(convert.entry_to_proto(outcome), trust_domain=TD) == outcome


def read(message):
    try:
        return convert.entry_from_proto(message, trust_domain=TD)
    except InvalidEntry as refusal:
        return refusal


@given(st.binary(max_size=200))
def test_reading_a_bundle_is_total(data):
    message = bundle_pb2.Bundle(trust_domain="example.org", x509_authorities=[{"asn1": data}])
    with pytest.raises(InvalidBundle):
        convert.bundle_from_proto(message)


@given(st.sampled_from(list(Kind)), st.text(max_size=3000))
def test_an_items_status_is_always_complete(kind, text):
    """spire_wire section 3: Go clients read code and message unasked."""
    error = IdentityError(text)
    error.kind = kind
    status = item_status(error)
    assert status.code != 0
    assert 0 < len(status.message.encode()) <= MAX_TEXT


def test_a_good_items_status_says_ok():
    assert (item_status(None).code, item_status(None).message) == (0, "OK")
