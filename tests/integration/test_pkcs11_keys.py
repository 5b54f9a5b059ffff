"""Keys in a real SoftHSM2 token: what stays inside, what is found again, whose key is whose."""

from __future__ import annotations

import pickle
import subprocess
from pathlib import Path

import pkcs11
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from pkcs11 import Attribute, ObjectClass

from spiffe_core.crypto.keys import KeyKind, spki_der
from spiffe_core.errors import Conflict, InvalidRequest, Unavailable
from tests.softhsm import MODULE, PIN, SoftToken, soft_token

ECDSA = ec.ECDSA(hashes.SHA256())
SLOT = "x509-CA-A"


@pytest.fixture
def token(tmp_path: Path) -> SoftToken:
    return soft_token(tmp_path / "token")


class Clock:
    """Time that moves when a test says so: new sessions are some seconds apart."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def objects(keys, **query):
    """The objects in the token, as (class, label, id, attributes that must not be weaker)."""
    wanted = {getattr(Attribute, name): value for name, value in query.items()}
    return keys._link.call(
        lambda connection: [(one.object_class, one) for one in connection.session.get_objects(wanted)], 10
    )


def labels(keys):
    return sorted((which.name, one.label) for which, one in objects(keys))


def public_of(keys, slot=SLOT):
    signer = keys.signer(slot)
    return None if signer is None else spki_der(signer.public_key())


@pytest.mark.parametrize("kind", [KeyKind.EC_P256, KeyKind.RSA_2048], ids=lambda kind: kind.value)
def test_the_private_half_is_made_in_the_token_and_cannot_leave_it(token: SoftToken, kind: KeyKind) -> None:
    """A12: sensitive, never extractable, made inside; neither the token nor our object gives it away."""
    keys = token.keys()
    keys.generate(SLOT, kind)
    ((_, private),) = objects(keys, CLASS=ObjectClass.PRIVATE_KEY)
    facts = [
        Attribute.SENSITIVE,
        Attribute.ALWAYS_SENSITIVE,
        Attribute.NEVER_EXTRACTABLE,
        Attribute.LOCAL,
        Attribute.PRIVATE,
    ]
    assert [private[fact] for fact in facts] == [True] * 5
    assert (private[Attribute.EXTRACTABLE], private[Attribute.SIGN], private[Attribute.DECRYPT]) == (False, True, False)
    secret = Attribute.VALUE if kind is KeyKind.EC_P256 else Attribute.PRIVATE_EXPONENT
    with pytest.raises(pkcs11.AttributeSensitive):
        private[secret]
    signer = keys.signer(SLOT)
    assert signer is not None
    for leak in (signer.private_numbers, lambda: signer.private_bytes(1, 2, 3), lambda: pickle.dumps(signer)):
        with pytest.raises(TypeError):
            leak()
    assert PIN not in f"{keys!r} {signer!r} {vars(keys)}"


def test_keys_are_found_again_by_another_process_and_by_openssl(token: SoftToken, tmp_path: Path) -> None:
    """R1: label, id and signature hold over a restart; a stock tool sees the same public key and believes the signature."""
    made = {
        slot: spki_der(token.keys().generate(slot, kind))
        for slot, kind in (("x509-CA-A", KeyKind.EC_P384), ("jwt-B", KeyKind.RSA_2048))
    }
    again = token.keys()
    assert {slot: public_of(again, slot) for slot in again.list()} == made
    public, signature, data = tmp_path / "public.der", tmp_path / "signature", tmp_path / "data"
    public.write_bytes(made["x509-CA-A"])
    data.write_bytes(b"data")
    signature.write_bytes(again.signer("x509-CA-A").sign(b"data", ec.ECDSA(hashes.SHA384())))
    command = ["openssl", "dgst", "-sha384", "-verify", public, "-keyform", "DER", "-signature", signature, data]
    assert "Verified OK" in subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
    assert "muniment-x509-CA-A" in token.tool("--list-objects")


def test_only_what_a_token_signs_is_signed(token: SoftToken) -> None:
    keys = token.keys()
    keys.generate("ec", KeyKind.EC_P256)
    keys.generate("rsa", KeyKind.RSA_2048)
    for wrong in (
        lambda: keys.signer("ec").sign(b"", ec.ECDSA(Prehashed(hashes.SHA256()))),
        lambda: keys.signer("rsa").sign(b"", padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256()),
        lambda: keys.signer("rsa").sign(b"", padding.PKCS1v15(), Prehashed(hashes.SHA256())),
    ):
        with pytest.raises(TypeError):
            wrong()


def test_a_slot_by_its_number_is_the_same_token(token: SoftToken) -> None:
    made = spki_der(token.keys().generate(SLOT, KeyKind.EC_P256))
    number = next(
        slot.slot_id for slot in pkcs11.lib(str(MODULE.resolve())).get_slots() if slot.get_token().label == token.label
    )
    assert public_of(token.keys(token="", slot=number)) == made


def test_two_servers_with_prefixes_of_their_own_share_a_token(token: SoftToken) -> None:
    """Each sees, replaces and deletes its own keys alone, also when one prefix begins like the other."""
    first, second = token.keys(prefix="a-"), token.keys(prefix="a-b-", server_id="server-2")
    mine, theirs = spki_der(first.generate(SLOT, KeyKind.EC_P256)), spki_der(second.generate(SLOT, KeyKind.EC_P256))
    assert (public_of(first), public_of(second)) == (mine, theirs)
    assert token.keys(prefix="a-").list() == token.keys(prefix="a-b-", server_id="server-2").list() == (SLOT,)
    first.delete(SLOT)
    assert (token.keys(prefix="a-").list(), public_of(token.keys(prefix="a-b-", server_id="server-2"))) == ((), theirs)
    second.signer(SLOT).sign(b"", ECDSA)


def test_a_second_server_with_the_same_prefix_is_refused_and_harms_nothing(token: SoftToken) -> None:
    mine = spki_der(token.keys().generate(SLOT, KeyKind.EC_P256))
    other = token.keys(server_id="server-2")
    assert other.list() == ()
    with pytest.raises(Conflict, match="key_label_prefix"):
        other.generate(SLOT, KeyKind.EC_P256)
    other.delete(SLOT)
    assert public_of(token.keys()) == mine


def test_a_foreign_key_with_our_label_is_neither_used_nor_touched(token: SoftToken) -> None:
    token.tool("--keypairgen", "--key-type", "EC:prime256v1", "--label", f"muniment-{SLOT}", "--id", "6d6e6d74")
    keys = token.keys()
    assert (keys.list(), keys.signer(SLOT)) == ((), None)
    with pytest.raises(Conflict, match=f"muniment-{SLOT} that this server did not make"):
        keys.generate(SLOT, KeyKind.EC_P256)
    assert labels(keys) == [("PRIVATE_KEY", f"muniment-{SLOT}"), ("PUBLIC_KEY", f"muniment-{SLOT}")]
    keys.generate("x509-CA-B", KeyKind.EC_P256)


def test_our_label_and_id_do_not_make_a_swapped_key_ours(token: SoftToken) -> None:
    """Somebody with the PIN exchanges the public half: the pair proves nothing and counts as lost."""
    keys = token.keys()
    keys.generate(SLOT, KeyKind.EC_P256)
    ((_, old),) = objects(keys, CLASS=ObjectClass.PUBLIC_KEY)
    key_id, label = old[Attribute.ID], old.label
    old_link = keys._link
    old_link.call(
        lambda connection: next(
            iter(connection.session.get_objects({Attribute.CLASS: ObjectClass.PUBLIC_KEY}))
        ).destroy(),
        10,
    )
    token.tool("--keypairgen", "--key-type", "EC:prime256v1", "--label", "stranger", "--id", "00")

    def rename(connection):
        for one in list(
            connection.session.get_objects({Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.LABEL: "stranger"})
        ):
            one[Attribute.ID], one[Attribute.LABEL] = key_id, label

    old_link.call(rename, 10)
    assert token.keys().list() == ()


def test_an_older_pair_left_by_a_killed_server_is_removed_with_the_next_change(token: SoftToken) -> None:
    """R1: killed after the new pair was made and before the old one was removed; the newest whole pair counts."""
    keys = token.keys()
    keys.generate(SLOT, KeyKind.EC_P256)
    keys._remove_older = lambda *_: None  # the kill
    newest = spki_der(keys.generate(SLOT, KeyKind.EC_P256))
    assert len(labels(keys)) == 4
    again = token.keys()
    assert public_of(again) == newest
    last = spki_der(again.generate(SLOT, KeyKind.EC_P256))
    assert (len(labels(again)), public_of(token.keys())) == (2, last)


def test_a_half_made_pair_is_no_key_and_gives_way(token: SoftToken) -> None:
    """R1: killed between the two halves, in whichever order a token stores them."""
    for half in (ObjectClass.PUBLIC_KEY, ObjectClass.PRIVATE_KEY):
        keys = token.keys()
        keys.generate(SLOT, KeyKind.EC_P256)
        keys._link.call(
            lambda connection, half=half: next(iter(connection.session.get_objects({Attribute.CLASS: half}))).destroy(),
            10,
        )
        again = token.keys()
        assert again.list() == ()
        made = spki_der(again.generate(SLOT, KeyKind.EC_P256))
        assert (len(labels(again)), public_of(token.keys())) == (2, made)


def test_a_pair_deleted_behind_our_back_is_told_and_others_go_on(token: SoftToken) -> None:
    keys = token.keys()
    keys.generate("x509-CA-A", KeyKind.EC_P256)
    keys.generate("x509-CA-B", KeyKind.EC_P256)
    token.tool("--delete-object", "--type", "privkey", "--label", "muniment-x509-CA-A")
    with pytest.raises(Unavailable, match="does not hold the key any more"):
        keys.signer("x509-CA-A").sign(b"", ECDSA)
    assert "lost the key muniment-x509-CA-A" in keys.trouble
    keys.signer("x509-CA-B").sign(b"", ECDSA)
    keys.check()
    assert "lost the key muniment-x509-CA-A" in keys.trouble
    keys.generate("x509-CA-A", KeyKind.EC_P256)
    keys.signer("x509-CA-A").sign(b"", ECDSA)
    assert keys.trouble == ""


def test_a_kind_of_key_no_token_makes_is_refused_by_name(token: SoftToken) -> None:
    unknown = [kind for kind in KeyKind if kind.value.startswith("ml-dsa")]
    keys = token.keys()
    for kind in unknown:
        with pytest.raises(InvalidRequest, match=f"{kind.value} keys cannot be made in a PKCS#11 token"):
            keys.generate(SLOT, kind)
    assert keys.list() == ()
