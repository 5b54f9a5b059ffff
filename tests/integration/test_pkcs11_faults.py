"""A token that is wrong, locked, away or slow: one clear error, no PIN tried twice, and recovery by itself."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from pkcs11 import TokenFlag

from identity_server.keys import pkcs11 as manager
from identity_server.keys.token_link import RETRY_SECONDS
from spiffe_core.crypto.keys import KeyKind, spki_der
from spiffe_core.errors import ConfigError, Unavailable
from tests.softhsm import MODULE, OFFICER_PIN, PIN, SoftToken, soft_token, write_pin

ECDSA = ec.ECDSA(hashes.SHA256())
SLOT = "x509-CA-A"


class Clock:
    """Time that moves when a test says so: new sessions are some seconds apart."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def token(tmp_path: Path) -> SoftToken:
    return soft_token(tmp_path / "token")


@pytest.fixture
def clock() -> Clock:
    return Clock()


def wrong_tries(token: SoftToken) -> bool:
    """Whether the token counts a wrong PIN since the last login; asked without logging in."""
    from pkcs11 import lib

    slots = lib(str(MODULE.resolve())).get_slots()
    (found,) = [one for slot in slots if (one := slot.get_token()).label == token.label]
    return bool(found.flags & TokenFlag.USER_PIN_COUNT_LOW)


def test_a_wrong_pin_is_tried_once_whatever_the_number_of_restarts(token: SoftToken) -> None:
    """The refused version of the file is remembered; a new one is tried, and a good one forgets the refusal."""
    write_pin(token.pin_file, "0000-wrong")
    with pytest.raises(ConfigError, match="refused the PIN") as refused:
        token.keys()
    assert refused.value.field == "ca.pkcs11.pin_file"
    assert str(token.pin_file) in refused.value.public
    assert "0000-wrong" not in f"{refused.value} {refused.value.facts} {refused.value.__cause__!r}"
    assert wrong_tries(token)
    token.tool("--list-objects")  # a good login by another program sets the token's count back
    for _ in range(3):
        with pytest.raises(ConfigError, match="refused this PIN before"):
            token.keys()
        assert not wrong_tries(token)
    write_pin(token.pin_file, PIN)
    token.keys()
    assert not token.refused.exists()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.unlink(), "does not exist"),
        (lambda path: path.chmod(0o644), "0644"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "not text"),
        (lambda path: path.write_text(""), "one line"),
        (lambda path: path.write_text("a\nb\n"), "one line"),
        (lambda path: path.write_text("x" * 300), "larger than"),
        (lambda path: (path.rename(path.with_name("real")), path.symlink_to(path.with_name("real"))), "symbolic link"),
    ],
    ids=["missing", "readable by others", "not text", "empty", "two lines", "huge", "link"],
)
def test_a_pin_file_that_is_not_private_text_is_refused_before_any_login(token: SoftToken, spoil, why: str) -> None:
    """S70: the PIN is in a file of mode 0600 and nowhere else."""
    spoil(token.pin_file)
    with pytest.raises(ConfigError, match=why) as refused:
        token.keys()
    assert str(token.pin_file) in refused.value.public
    token.tool("--list-objects")


@pytest.mark.parametrize(
    ("flag", "why"),
    [(TokenFlag.USER_PIN_LOCKED, "is locked"), (TokenFlag.USER_PIN_FINAL_TRY, "would lock"), (None, "no user PIN yet")],
    ids=["locked", "final try", "no PIN"],
)
def test_a_token_that_is_locked_or_about_to_be_is_not_tried(token: SoftToken, flag, why: str, monkeypatch) -> None:
    """SoftHSM never locks, so its flags are exchanged on their way; the PIN file is gone, so a try would say so."""
    from identity_server.keys import token_link

    token.pin_file.unlink()
    real = token_link._token_of
    flags = TokenFlag.USER_PIN_INITIALIZED | flag if flag else TokenFlag.TOKEN_INITIALIZED

    class Flagged:
        def __init__(self, inner):
            self.label, self.flags = inner.label, flags

    monkeypatch.setattr(token_link, "_token_of", lambda slot: (one := real(slot)) and Flagged(one))
    with pytest.raises(ConfigError, match=why):
        token.keys()


def test_a_token_without_a_user_pin_is_told(token: SoftToken) -> None:
    """The same on a token as `softhsm2-util` of a security officer leaves it."""
    label = f"{token.label}x"
    command = [
        "pkcs11-tool",
        "--module",
        MODULE,
        "--init-token",
        "--slot-index",
        "1",
        "--label",
        label,
        "--so-pin",
        OFFICER_PIN,
    ]
    listed = subprocess.run(
        ["pkcs11-tool", "--module", MODULE, "-L"], check=True, capture_output=True, text=True, timeout=30
    ).stdout
    command[command.index("--slot-index") + 1] = str(listed.count("Slot ") - 1)
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    with pytest.raises(ConfigError, match="has no user PIN yet"):
        token.keys(token=label)


def test_a_missing_module_is_named(token: SoftToken, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"ca.pkcs11.module: {tmp_path}/none.so cannot be opened: No such file"):
        token.keys(module=tmp_path / "none.so")


@pytest.mark.parametrize("what", ["text", "another library", "directory", "writable by others"])
def test_what_is_no_module_or_not_ours_alone_is_refused(token: SoftToken, tmp_path: Path, what: str) -> None:
    """The module runs inside the server: a file that others may write is code that others may choose."""
    path = tmp_path / "module.so"
    if what == "directory":
        path.mkdir()
    elif what == "text":
        path.write_text("not a library")
    else:
        library = Path("/lib/x86_64-linux-gnu/libz.so.1") if what == "another library" else MODULE
        if not library.exists():
            pytest.skip(f"{library} is not here")
        path.write_bytes(library.read_bytes())
    path.chmod(0o775 if what == "writable by others" else 0o755)
    with pytest.raises(ConfigError, match=r"ca\.pkcs11\.module") as refused:
        token.keys(module=path)
    assert str(path) in refused.value.public


@pytest.mark.parametrize(
    ("over", "field"), [({"token": "nobody"}, "token"), ({"token": "", "slot": 4_000_000_000}, "slot")]
)
def test_a_missing_token_is_named_with_how_to_list_them(token: SoftToken, over, field: str) -> None:
    with pytest.raises(ConfigError, match=r"there is no PKCS#11.*--list-slots") as refused:
        token.keys(**over)
    assert refused.value.field == f"ca.pkcs11.{field}"


def test_two_tokens_with_one_label_are_refused(token: SoftToken) -> None:
    command = ["softhsm2-util", "--init-token", "--free", "--label", token.label, "--so-pin", OFFICER_PIN, "--pin", PIN]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    with pytest.raises(ConfigError, match="there are several of"):
        token.keys()


def test_a_token_that_vanishes_is_told_and_comes_back_by_itself(token: SoftToken, clock: Clock) -> None:
    """Signing and making keys say Unavailable, `trouble` says why; after its return the same signer works again."""
    keys = token.keys(monotonic=clock)
    made = keys.generate(SLOT, KeyKind.EC_P256)
    signer = keys.signer(SLOT)
    clock.now += RETRY_SECONDS
    token.pull_out()
    for use in (lambda: signer.sign(b"data", ECDSA), lambda: keys.generate("x509-CA-B", KeyKind.EC_P256)):
        with pytest.raises(Unavailable):
            use()
        assert keys.trouble
    clock.now += RETRY_SECONDS
    keys.check()
    assert "there is no PKCS#11 token" in keys.trouble
    token.put_back()
    clock.now += RETRY_SECONDS
    made.verify(signer.sign(b"data", ECDSA), b"data", ECDSA)
    assert keys.trouble == ""
    assert keys.list() == (SLOT,)


def test_a_check_alone_sees_a_token_leave_and_return(token: SoftToken, clock: Clock) -> None:
    """Nobody asks for a signature meanwhile: SoftHSM shows an empty token instead of an error."""
    keys = token.keys(monotonic=clock)
    keys.generate(SLOT, KeyKind.EC_P256)
    seen = []
    for change in (lambda: None, token.pull_out, token.put_back):
        change()
        clock.now += RETRY_SECONDS
        keys.check()
        seen.append(bool(keys.trouble))
    assert seen == [False, True, False]


def test_a_pin_changed_while_the_token_was_away_stops_at_one_try(token: SoftToken, clock: Clock) -> None:
    """A running server answers Unavailable instead of ending, and goes on once the file holds the new PIN."""
    keys = token.keys(monotonic=clock)
    keys.generate(SLOT, KeyKind.EC_P256)
    token.tool("--change-pin", "--new-pin", "8765-new")
    token.pull_out()
    clock.now += RETRY_SECONDS
    with pytest.raises(Unavailable):
        keys.signer(SLOT).sign(b"", ECDSA)
    token.put_back()
    for expected in ("refused the PIN", "refused this PIN before", "refused this PIN before"):
        clock.now += RETRY_SECONDS
        with pytest.raises(Unavailable, match=expected):
            keys.signer(SLOT).sign(b"", ECDSA)
    write_pin(token.pin_file, "8765-new")
    clock.now += RETRY_SECONDS
    keys.signer(SLOT).sign(b"", ECDSA)


def test_a_module_initialised_again_elsewhere_costs_one_new_session(token: SoftToken) -> None:
    """Session loss: handles of before are void, and nobody notices."""
    keys = token.keys()
    made = keys.generate(SLOT, KeyKind.EC_P256)
    token.keys()
    made.verify(keys.signer(SLOT).sign(b"data", ECDSA), b"data", ECDSA)
    assert keys.trouble == ""


def test_a_closed_session_is_opened_again(token: SoftToken, clock: Clock) -> None:
    keys = token.keys(monotonic=clock)
    made = keys.generate(SLOT, KeyKind.EC_P256)
    keys._link.call(lambda connection: connection.session.close(), 10)
    clock.now += RETRY_SECONDS
    made.verify(keys.signer(SLOT).sign(b"data", ECDSA), b"data", ECDSA)


def test_a_token_that_hangs_holds_the_caller_once(token: SoftToken, monkeypatch) -> None:
    """The first caller waits its time, the next fail at once, and the first answer ends that."""
    monkeypatch.setattr(manager, "SIGN_SECONDS", 0.05)
    keys = token.keys()
    keys.generate(SLOT, KeyKind.EC_P256)
    answers, asked = threading.Event(), threading.Event()

    def hang(connection) -> None:
        asked.set()
        assert answers.wait(50)

    stuck = threading.Thread(target=keys._link.call, args=(hang, 50))
    stuck.start()
    assert asked.wait(50)
    with pytest.raises(Unavailable, match="does not answer"):
        keys.signer(SLOT).sign(b"", ECDSA)
    monkeypatch.setattr(manager, "SIGN_SECONDS", 50)
    with pytest.raises(Unavailable, match="does not answer"):
        keys.signer(SLOT).sign(b"", ECDSA)  # would wait for ever if it waited
    assert "does not answer" in keys.trouble
    answers.set()
    stuck.join(50)
    keys.check()
    keys.signer(SLOT).sign(b"", ECDSA)
    assert keys.trouble == ""


def test_many_threads_take_turns(token: SoftToken) -> None:
    """The binding promises the module one thread at a time: thirty callers, one after the other, all good."""
    keys = token.keys()
    made = keys.generate(SLOT, KeyKind.EC_P256)
    signer = keys.signer(SLOT)
    good: list[int] = []

    def sign(number: int) -> None:
        data = b"%d" % number
        made.verify(signer.sign(data, ECDSA), data, ECDSA)
        good.append(number)

    threads = [threading.Thread(target=sign, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    assert sorted(good) == list(range(30))
    assert spki_der(made) == spki_der(signer.public_key())
