"""The way to a PKCS#11 token: one thread, one session, one login (PKCS#11 2.40 sections 5.4 to 5.6).

The binding initialises a module without locks, so the standard lets one thread at a time call it (section 5.4,
C_Initialize with NULL): `TokenLink` sends all calls through a thread of its own, and links to the same module in one
process take turns. Callers wait for so long as they choose. Once one waited in vain, the others fail at once until the
token answers again, so that a token that hangs holds the event loop a single time.

A call that fails for any reason but its own arguments is tried once more over a new session, after the module was
initialised again: that is what brings a token back that was pulled out. New sessions are spaced `RETRY_SECONDS` apart.
A PIN that was refused is never tried again, so that no number of restarts locks a token: a file beside the database
remembers which version of the PIN file it was.
"""

from __future__ import annotations

import logging
import queue
import stat
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pkcs11
from pkcs11 import PKCS11Error, PrivateKey, Session, Token, TokenFlag

from spiffe_core.errors import ConfigError, CorruptState, IdentityError, Unavailable
from spiffe_core.runtime.durable import read_private, write_durably

log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
"""How far apart new sessions are opened at least."""
MAX_PIN_BYTES = 256
MAX_SLOTS_SEEN = 1_024
_MAX_STAMP_BYTES = 128
_FOREIGN_WRITERS = stat.S_IWGRP | stat.S_IWOTH

T = TypeVar("T")

_FINAL = (  # the call itself is wrong: another session would not help
    pkcs11.MechanismInvalid,
    pkcs11.MechanismParamInvalid,
    pkcs11.KeySizeRange,
    pkcs11.KeyTypeInconsistent,
    pkcs11.TemplateInconsistent,
    pkcs11.TemplateIncomplete,
    pkcs11.AttributeTypeInvalid,
    pkcs11.AttributeValueInvalid,
    pkcs11.AttributeReadOnly,
    pkcs11.FunctionNotSupported,
    pkcs11.TokenWriteProtected,
    pkcs11.DomainParamsInvalid,
)


@dataclass(frozen=True, slots=True)
class TokenAddress:
    """Which token: the module, the token's label or else its slot number, and the file with its user PIN.

    `refused` is a file of ours that remembers a refused PIN.
    """

    module: Path
    pin_file: Path
    refused: Path
    token: str = ""
    slot: int | None = None

    def __str__(self) -> str:
        return f"PKCS#11 token {self.token!r}" if self.slot is None else f"PKCS#11 slot {self.slot}"


@dataclass(slots=True)
class Connection:
    """A logged-in session and the private keys found in it, by CKA_ID."""

    session: Session
    handles: dict[bytes, PrivateKey] = field(default_factory=dict)


class _Module:
    """One loaded library. `turn` is held by whoever calls it; `epoch` counts its initialisations."""

    def __init__(self, path: Path) -> None:
        self.turn = threading.RLock()
        self.epoch = 0
        self._path = path
        self._library: Any = None

    def initialise(self, *, anew: bool) -> Any:
        """The library; initialised `anew`, every session and handle of before is void."""
        if self._library is not None and not anew:
            return self._library
        self.epoch += 1
        try:
            if self._library is None:
                self._library = pkcs11.lib(str(self._path))
            elif self._library.initialized:
                self._library.reinitialize()
            else:
                self._library.initialize()
        except PKCS11Error as error:
            raise ConfigError(
                f"ca.pkcs11.module: {self._path} cannot be used as a PKCS#11 module ({_name(error)}: {error}); name "
                "the library your token's vendor gives you, for SoftHSM2 libsofthsm2.so",
                field="ca.pkcs11.module",
            ) from error
        return self._library


_modules: dict[Path, _Module] = {}
_modules_turn = threading.Lock()


def _module(path: Path) -> _Module:
    """The one `_Module` of a library in this process, once its file may be trusted.

    Raises:
        ConfigError: there is no such file, or others may write to it.
    """
    try:
        real = path.resolve(strict=True)
        found = real.stat()
    except OSError as error:
        raise ConfigError(
            f"ca.pkcs11.module: {path} cannot be opened: {error.strerror}; name the library your token's vendor gives "
            "you, by its absolute path",
            field="ca.pkcs11.module",
        ) from error
    if not stat.S_ISREG(found.st_mode) or found.st_mode & _FOREIGN_WRITERS:
        raise ConfigError(
            f"ca.pkcs11.module: {real} is not a regular file that only its owner may write; it runs inside this server",
            field="ca.pkcs11.module",
        )
    with _modules_turn:
        return _modules.setdefault(real, _Module(real))


class TokenLink:
    """Runs calls on the token, one at a time, and keeps the session they need."""

    def __init__(self, address: TokenAddress, monotonic: Callable[[], float]) -> None:
        self._address, self._monotonic = address, monotonic
        self._module = _module(address.module)
        self._jobs: queue.SimpleQueue[tuple[Callable[[Connection], Any], Future[Any]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._running = self._stuck = False
        self._connection: Connection | None = None
        self._epoch = 0
        self._tried: float | None = None
        self._failure: IdentityError | None = None
        self.trouble = ""
        """Why the token cannot be used now; "" if it could be the last time."""

    def open(self, patience: float) -> None:
        """Connect for the first time.

        Raises:
            ConfigError: module, token or PIN are wrong; waiting would not help.
            Unavailable: the token does not work now.
        """
        self._submit(_nothing, patience)

    def call(self, work: Callable[[Connection], T], patience: float) -> T:
        """Run `work` on the token's thread; wait `patience` seconds at most.

        Raises:
            Unavailable: the token cannot be used now.
        """
        try:
            return self._submit(work, patience)
        except ConfigError as error:  # what was right at the start may be wrong now: the server goes on and tries again
            raise Unavailable(error.public) from error

    def _submit(self, work: Callable[[Connection], T], patience: float) -> T:
        with self._lock:
            if self._stuck:
                raise self._silent()
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="pkcs11", daemon=True)
                self._thread.start()
        done: Future[T] = Future()
        self._jobs.put((work, done))
        try:
            return done.result(patience)
        except TimeoutError:
            with self._lock:
                if done.done():
                    return done.result()
                done.cancel()
                self._stuck = self._running
                self.trouble = self._silent().public
            raise self._silent() from None

    def distrust(self) -> None:
        """Open a new session before the next call, unless this one is young."""
        if self._may_connect():
            self._connection = None

    def _silent(self) -> Unavailable:
        return Unavailable(f"{self._address} does not answer; it is used again as soon as it does")

    def _serve(self) -> None:
        while True:
            work, done = self._jobs.get()
            if not done.set_running_or_notify_cancel():
                continue
            with self._lock:
                self._running = True
            try:
                value = self._do(work)
            except BaseException as error:  # noqa: BLE001  # carried to the waiting thread
                done.set_exception(error)
            else:
                done.set_result(value)
                self.trouble = ""
            with self._lock:
                self._running = self._stuck = False

    def _do(self, work: Callable[[Connection], T]) -> T:
        with self._module.turn:
            fresh = self._connection is None or self._epoch != self._module.epoch
            connection = self._connect() if fresh else self._connection
            assert connection is not None
            try:
                try:
                    return work(connection)
                except _FINAL:
                    raise
                except PKCS11Error as error:
                    if not self._may_connect():
                        raise
                    log.warning("the token failed; opening a new session", exc_info=error)
                    return work(self._connect())
            except pkcs11.NoSuchKey as error:
                raise Unavailable(f"{self._address} does not hold the key any more") from error
            except PKCS11Error as error:
                failure = Unavailable(f"{self._address} failed: {_name(error)}; its own log may say more")
                self.trouble = failure.public
                if not isinstance(error, _FINAL):
                    self._connection, self._failure = None, failure
                raise failure from error

    def _may_connect(self) -> bool:
        return self._tried is None or self._monotonic() - self._tried >= RETRY_SECONDS

    def _connect(self) -> Connection:
        """A new session, logged in. Not more often than every `RETRY_SECONDS`, unless another link took ours away."""
        if not self._may_connect() and self._failure is not None:
            raise self._failure
        replaced = 0 < self._epoch < self._module.epoch  # another link of this process initialised the module again
        self._tried, self._connection = self._monotonic(), None
        try:
            library = self._module.initialise(anew=not replaced)
            self._epoch = self._module.epoch
            session = self._log_in(self._find(library))
        except IdentityError as error:
            self._failure = error
        except PKCS11Error as error:
            self._failure = Unavailable(f"{self._address} cannot be used now: {_name(error)}")
        else:
            self._failure = None
            self._connection = Connection(session)
            return self._connection
        self.trouble = self._failure.public
        raise self._failure

    def _find(self, library: Any) -> Token:
        found: list[Token]
        wanted = self._address
        slots = library.get_slots(token_present=True)
        if wanted.slot is not None:
            found = [slot.get_token() for slot in slots if slot.slot_id == wanted.slot]
        else:
            found = [
                token for slot in slots[:MAX_SLOTS_SEEN] if (token := _token_of(slot)) and token.label == wanted.token
            ]
        if len(found) != 1:
            how_many = "is no" if not found else "are several of"
            key = "ca.pkcs11.token" if wanted.slot is None else "ca.pkcs11.slot"
            raise ConfigError(
                f"{key}: there {how_many} {wanted} in {wanted.module}; list what there is with `pkcs11-tool --module "
                f"{wanted.module} --list-slots`",
                field=key,
            )
        return found[0]

    def _log_in(self, token: Token) -> Session:
        where, flags = self._address, token.flags
        if not flags & TokenFlag.USER_PIN_INITIALIZED:
            raise _pin_trouble(f"{where} has no user PIN yet; set one with the tool of its vendor")
        if flags & TokenFlag.USER_PIN_LOCKED:
            raise _pin_trouble(f"the user PIN of {where} is locked; its security officer can set a new one")
        if flags & TokenFlag.USER_PIN_FINAL_TRY:
            raise _pin_trouble(
                f"{where} would lock its PIN at one more wrong try, so none is made; log in with the tool of its "
                "vendor once, which resets the count"
            )
        pin, stamp = self._pin()
        if stamp == self._refused_stamp():
            raise _pin_trouble(
                f"{where} refused this PIN before, and it is not tried again so that the token does not lock; write "
                f"the right one to {where.pin_file}"
            )
        try:
            session = token.open(rw=True, user_pin=pin)
        except pkcs11.UserAlreadyLoggedIn:  # by another link of this process: a login is the process's (section 5.6)
            session = token.open(rw=True)
        except (pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange) as error:
            write_durably(where.refused, stamp)
            raise _pin_trouble(f"{where} refused the PIN in {where.pin_file}; write the right one there") from error
        except (pkcs11.PinLocked, pkcs11.PinExpired) as error:
            raise _pin_trouble(
                f"the user PIN of {where} is locked or expired ({_name(error)}); its security officer can set a new one"
            ) from error
        where.refused.unlink(missing_ok=True)
        return session

    def _pin(self) -> tuple[str, bytes]:
        """The PIN, and a stamp of the version of its file."""
        path = self._address.pin_file
        try:
            found = path.lstat()
            text = read_private(path, max_bytes=MAX_PIN_BYTES).decode("utf-8").removesuffix("\n")
        except FileNotFoundError:
            raise _pin_trouble(f"{path} does not exist; write the token's user PIN there, mode 0600") from None
        except UnicodeDecodeError:
            raise _pin_trouble(f"{path} is not text") from None
        except CorruptState as error:
            raise _pin_trouble(error.public) from None
        if not text or not text.isprintable():
            raise _pin_trouble(f"{path} must hold the PIN on one line and nothing else")
        return text, f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}\n".encode("ascii")

    def _refused_stamp(self) -> bytes:
        try:
            return read_private(self._address.refused, max_bytes=_MAX_STAMP_BYTES)
        except FileNotFoundError:
            return b""


def _nothing(connection: Connection) -> None:
    """Opening is what is wanted; every call opens."""
    del connection


def _token_of(slot: Any) -> Token | None:
    """The token in a slot; None for a slot that cannot be read, which is not the one we look for."""
    try:
        token = slot.get_token()
    except PKCS11Error:
        return None
    return token if isinstance(token, Token) else None


def _pin_trouble(text: str) -> ConfigError:
    return ConfigError(f"ca.pkcs11.pin_file: {text}", field="ca.pkcs11.pin_file")


def _name(error: PKCS11Error) -> str:
    return type(error).__name__
