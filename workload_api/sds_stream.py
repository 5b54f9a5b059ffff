"""The two xDS protocols as state machines without I/O: what a request or a new state asks to be answered.

State of the world (StreamSecrets): the first request of a stream is answered whatever version it names, because a proxy
that comes back after our restart names an old one. A request whose nonce is not that of the last answer is stale and
passed over; one with the same names is an acknowledgement, or a complaint, and needs no answer.

Delta (DeltaSecrets): each resource bears the digest of its content as its version, so a proxy that comes back with what
it holds is sent only what differs. A name that leads to nothing (any more) is *removed*, and delivered when it appears.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from spiffe_core.errors import Exhausted, InvalidRequest
from spiffe_core.wire._gen.envoy import secret_discovery_pb2 as discovery
from spiffe_core.wire._gen.envoy import secret_pb2
from workload_api.sds_secrets import SECRET_TYPE, Secrets

log = logging.getLogger(__name__)

MAX_NAMES: Final = 1024
MAX_NAME_BYTES: Final = 2048
EVERYTHING: Final = "*"
Nonce = Callable[[], str]


def resources_of(secrets: Secrets, names: Sequence[str]) -> list[secret_pb2.Secret]:
    """The secrets of these names, or every one if there are no names.

    Raises:
        InvalidRequest: a name this workload may not have, or that does not exist: it learns no difference.
    """
    if not names:
        return secrets.every()
    found = [(name, secrets.get(name)) for name in dict.fromkeys(names)]
    refused = [name for name, secret in found if secret is None]
    if refused:
        listed = " ".join(f'"{name}"' for name in refused)
        raise InvalidRequest(f"workload is not authorized for the requested identities [{listed}]")
    return [secret for _, secret in found if secret is not None]


def check_names(names: Sequence[str]) -> None:
    """Bounds on what one request may name.

    Raises:
        Exhausted: too many names, or too long ones.
    """
    if len(names) > MAX_NAMES or any(len(name.encode(errors="replace")) > MAX_NAME_BYTES for name in names):
        raise Exhausted(f"resource_names: at most {MAX_NAMES} names of {MAX_NAME_BYTES} bytes", field="resource_names")


@dataclass(slots=True)
class WorldStream:
    """One StreamSecrets stream. `owed`: an answer is due as soon as there is a state to answer with."""

    nonce_source: Nonce
    node: discovery.Node = field(default_factory=discovery.Node)
    names: tuple[str, ...] = ()
    type_url: str = ""
    owed: bool = False
    _nonce: str = ""
    _version: int = 0
    _asked: bool = False
    _complained: bool = False

    def request(self, request: discovery.DiscoveryRequest) -> None:
        """Take note of a request."""
        check_names(request.resource_names)
        if request.HasField("node"):
            self.node = request.node
        if request.HasField("error_detail") and not self._complained:
            self._complained = True  # one line for a stream: a proxy may say it as often as it likes
            log.warning("a proxy refused its secrets: %s", _short(request.error_detail.message))
        names = tuple(dict.fromkeys(request.resource_names))
        if self._asked and self._nonce:
            if request.response_nonce != self._nonce or set(names) == set(self.names):
                return
        elif self._asked and set(names) == set(self.names):
            return
        self._asked, self.names, self.type_url, self.owed = True, names, request.type_url, True

    def state_changed(self) -> None:
        """There is a new state of what the workload is entitled to."""
        self.owed = self._asked

    def answer(self, secrets: Secrets) -> discovery.DiscoveryResponse:
        """The whole answer for what is asked now.

        Raises:
            InvalidRequest: a name this workload may not have.
        """
        resources = resources_of(secrets, self.names)
        self._version += 1
        self._nonce, self.owed = self.nonce_source(), False
        response = world_response(resources, self.type_url)
        response.version_info, response.nonce = str(self._version), self._nonce
        return response


def world_response(resources: Iterable[secret_pb2.Secret], type_url: str) -> discovery.DiscoveryResponse:
    """An answer without version and nonce."""
    response = discovery.DiscoveryResponse(type_url=type_url or SECRET_TYPE)
    for secret in resources:
        response.resources.add().Pack(secret, deterministic=True)
    return response


@dataclass(slots=True)
class DeltaStream:
    """One DeltaSecrets stream: what is subscribed to, and what the proxy holds (name to version)."""

    nonce_source: Nonce
    node: discovery.Node = field(default_factory=discovery.Node)
    type_url: str = ""
    owed: bool = False
    _names: dict[str, None] = field(default_factory=dict)
    _everything: bool = False
    _held: dict[str, str] = field(default_factory=dict)
    _told_missing: set[str] = field(default_factory=set)
    _asked: bool = False
    _complained: bool = False
    _sent: int = 0

    def request(self, request: discovery.DeltaDiscoveryRequest) -> None:
        """Take note of a request."""
        check_names(request.resource_names_subscribe)
        check_names(request.resource_names_unsubscribe)
        if request.HasField("node"):
            self.node = request.node
        if request.HasField("error_detail") and not self._complained:
            self._complained = True  # one line for a stream: a proxy may say it as often as it likes
            log.warning("a proxy refused its secrets: %s", _short(request.error_detail.message))
        if not self._asked:
            check_names(list(request.initial_resource_versions))
            self._asked, self.type_url = True, request.type_url
            self._held = dict(request.initial_resource_versions)
            self._everything = not request.resource_names_subscribe
            self.owed = True
        for name in request.resource_names_subscribe:
            self.owed = True
            if name == EVERYTHING:
                self._everything = True
            else:
                self._names[name] = None
                self._told_missing.discard(name)
                if request.response_nonce:  # asked for again: sent again
                    self._held.pop(name, None)
        for name in request.resource_names_unsubscribe:
            if name == EVERYTHING:
                self._everything = False
            self._names.pop(name, None)
            self._held.pop(name, None)
            self._told_missing.discard(name)
        check_names(list(self._names))

    def state_changed(self) -> None:
        """There is a new state of what the workload is entitled to."""
        self.owed = self._asked

    def answer(self, secrets: Secrets) -> discovery.DeltaDiscoveryResponse | None:
        """What differs from what the proxy holds; None if nothing does."""
        self.owed = False
        wanted = {secret.name: secret for secret in (secrets.every() if self._everything else ())}
        for name in self._names:
            secret = secrets.get(name)
            if secret is not None:
                wanted[name] = secret
        response = discovery.DeltaDiscoveryResponse(type_url=self.type_url or SECRET_TYPE)
        for name, secret in wanted.items():
            version = _digest(secret)
            if self._held.get(name) != version:
                self._held[name] = version
                resource = response.resources.add(name=name, version=version)
                resource.resource.Pack(secret, deterministic=True)
            self._told_missing.discard(name)
        gone = [name for name in self._held if name not in wanted]
        missing = [name for name in self._names if name not in wanted and name not in self._told_missing]
        response.removed_resources.extend(dict.fromkeys((*gone, *missing)))
        for name in gone:
            del self._held[name]
        self._told_missing.update(name for name in self._names if name not in wanted)
        if not response.resources and not response.removed_resources and self._sent:
            return None
        self._sent += 1
        response.nonce, response.system_version_info = self.nonce_source(), str(self._sent)
        return response


def _digest(secret: secret_pb2.Secret) -> str:
    return hashlib.sha256(secret.SerializeToString(deterministic=True)).hexdigest()[:32]


def _short(text: str) -> str:
    return ascii(text[:200])
