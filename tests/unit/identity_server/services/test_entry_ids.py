"""Ids that the server gives to entries (B9): UUIDs of version 4, each of its own random bytes."""

import os
import uuid

from identity_server.services.entry_ids import EntryIds


def test_each_is_a_uuid_of_version_4_and_no_two_are_equal():
    """RFC 9562 sections 4.1 and 5.4, across several draws of random bytes."""
    new_id = EntryIds(os.urandom)
    ids = [new_id() for _ in range(1_000)]
    read = [uuid.UUID(one) for one in ids]
    assert {(one.version, one.variant) for one in read} == {(4, uuid.RFC_4122)}
    assert list(map(str, read)) == ids
    assert len(set(ids)) == len(ids)


def test_every_random_byte_is_used_once():
    """122 bits of each 128 are as they were drawn."""
    drawn = bytearray()

    def entropy(size):
        fresh = os.urandom(size)
        drawn.extend(fresh)
        return fresh

    new_id = EntryIds(entropy)
    made = [uuid.UUID(new_id()).int for _ in range(300)]
    source = [int.from_bytes(drawn[start : start + 16]) for start in range(0, 16 * 300, 16)]
    fixed = 0xF << 76 | 0b11 << 62
    assert [one & ~fixed for one in made] == [one & ~fixed for one in source]


def test_all_variants_of_the_digit_occur():
    """The two free bits of the variant's digit stay random."""
    new_id = EntryIds(os.urandom)
    assert {new_id()[19] for _ in range(1_000)} == set("89ab")
