"""The own bundle is written out once for each set of its fields (S65: a stranger asks for it)."""

from itertools import combinations

from identity_server.rpc.bundle_api import _FIELDS, BundleApi
from spiffe_core.wire._gen.spire.api.server.bundle.v1 import bundle_pb2
from spiffe_core.wire._gen.spire.api.types import bundle_pb2 as types_pb2
from tests.builders import TD, make_bundle
from tests.doubles.bundle_calls import mask

UNKNOWN_FIELD = 900
"""Of a number that no version of BundleMask has had."""


class Own:
    """The part of `TrustBundles` that is asked for."""

    def __init__(self):
        self.bundle = make_bundle(trust_domain="example.org", sequence=7, refresh_hint=60)

    def own(self):
        return self.bundle


def odd(number):
    """A mask with a field that nobody knows, another each time."""
    tag = UNKNOWN_FIELD << 3  # a varint
    return types_pb2.BundleMask.FromString(bytes((tag & 0x7F | 0x80, tag >> 7, number)))


async def test_every_set_of_fields_is_written_out_once_whatever_else_masks_hold():
    own = Own()
    api = BundleApi(own, None, trust_domain=TD)

    async def asked(shown):
        return await api.GetBundle(bundle_pb2.GetBundleRequest(output_mask=shown), None)

    assert {one.name for one in types_pb2.BundleMask.DESCRIPTOR.fields} == set(_FIELDS)
    for number in range(100):
        assert await asked(odd(number)) is await asked(mask())
    sets = [names for count in range(6) for names in combinations(_FIELDS, count)]
    first = {names: await asked(mask(*names)) for names in sets}
    for names in sets:
        assert await asked(mask(*names)) is first[names]
        shown = types_pb2.Bundle.FromString(first[names])
        assert {one.name for one, _ in shown.ListFields()} <= {"trust_domain", *names}
    whole = await api.GetBundle(bundle_pb2.GetBundleRequest(), None)
    assert whole is await api.GetBundle(bundle_pb2.GetBundleRequest(), None)
    assert types_pb2.Bundle.FromString(whole) == types_pb2.Bundle.FromString(first[tuple(_FIELDS)])
    own.bundle = make_bundle(trust_domain="example.org", sequence=8)
    assert types_pb2.Bundle.FromString(await asked(mask("sequence_number"))).sequence_number == 8
