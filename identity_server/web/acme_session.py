"""An ACME authority (RFC 8555) as an account of ours sees it: orders, challenges, certificates. Blocks; for threads.

The protocol is the library's (`acme`, of certbot), which is imported only where a certificate is ordered. Everything
around it is ours: https only, no redirects, no proxies or certificate stores from the environment, and bounds. What the
authority says is shown shortened and escaped.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import requests
import requests.adapters
import requests.utils
from acme import challenges, client, errors, messages
from cryptography.hazmat.primitives.asymmetric import ec
from josepy.jwa import ES256
from josepy.jwk import JWK, JWKEC

from spiffe_core.errors import IdentityError, PreconditionFailed, Unavailable
from spiffe_core.spiffe_id import shown

ChallengeKind = Literal["http-01", "tls-alpn-01"]

REQUEST_SECONDS = 15
MAX_ANSWER_BYTES = 1024 * 1024
_MAX_TEXT = 300
_NONCE_TRIES = 4


@challenges.ChallengeResponse.register
class TlsAlpn01Response(challenges.KeyAuthorizationChallengeResponse):
    """That the certificate is in its place (RFC 8737 section 3)."""

    typ = "tls-alpn-01"


@challenges.Challenge.register
class TlsAlpn01(challenges.KeyAuthorizationChallenge):
    """A challenge of RFC 8737, which the library no longer has."""

    response_cls = TlsAlpn01Response
    typ = TlsAlpn01Response.typ

    def validation(self, account_key: JWK, **_: Any) -> str:
        """The key authorization."""
        return self.key_authorization(account_key)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge that is to be answered: `key_authorization` is shown to whoever asks for `token`."""

    body: messages.ChallengeBody
    token: str
    key_authorization: str


class AcmeSession:
    """One account at one authority. Made anew for each order, so that nothing old is believed.

    Raises:
        Unavailable: from every method; what the authority or the network says.
    """

    def __init__(
        self,
        directory_url: str,
        key: ec.EllipticCurvePrivateKey,
        *,
        email: str,
        tos_accepted: bool,
        ca_file: Path | None,
    ) -> None:
        self._place = directory_url
        self._key = JWKEC(key=key)
        self._net = _Network(self._key, alg=ES256, user_agent="muniment", timeout=REQUEST_SECONDS)
        self._net.verify_ssl = str(ca_file or _system_store())  # type: ignore[assignment]  # requests takes a file too
        self._net.session.close()
        self._net.session = _session()
        try:
            with self._translated():
                self._client = client.ClientV2(client.ClientV2.get_directory(directory_url, self._net), self._net)
                self._register(email, tos_accepted=tos_accepted)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let the connections go."""
        self._net.session.close()

    def order(self, request_pem: bytes) -> messages.OrderResource:
        """Ask for the certificate of a request."""
        with self._translated():
            return self._client.new_order(request_pem)

    def challenge(self, authorization: messages.AuthorizationResource, kind: ChallengeKind) -> Challenge | None:
        """The challenge to answer; None if the authority believes the name already."""
        with self._translated():
            if authorization.body.status == messages.STATUS_VALID:
                return None
            for body in authorization.body.challenges:
                if body.chall.typ == kind:
                    token = body.chall.encode("token")
                    return Challenge(body, token, body.chall.key_authorization(self._key))
        raise Unavailable(f"{self._place} offers no challenge of the kind {kind}")

    def answer(self, challenge: Challenge) -> None:
        """Say that its answer is in place."""
        with self._translated():
            self._client.answer_challenge(challenge.body, challenge.body.chall.response(self._key))

    def believed(self, authorization: messages.AuthorizationResource) -> bool:
        """Whether the name is believed by now; False while that is being looked at."""
        with self._translated():
            found, _ = self._client.poll(authorization)
            if found.body.status == messages.STATUS_VALID:
                return True
            if found.body.status in {messages.STATUS_PENDING, messages.STATUS_PROCESSING}:
                return False
            causes = [one.error for one in found.body.challenges if one.error is not None]
        raise Unavailable(
            f"{self._place} could not verify the domain name: {_text(causes[0]) if causes else 'no reason was given'}"
        )

    def finalize(self, order: messages.OrderResource) -> None:
        """Ask for the certificate to be made."""
        with self._translated():
            self._client.begin_finalization(order)

    def certificate(self, order: messages.OrderResource) -> bytes | None:
        """The chain in PEM, leaf first; None while it is being made."""
        with self._translated():
            body = messages.Order.from_json(self._net_get(order.uri).json())
            if body.status == messages.STATUS_INVALID:
                raise Unavailable(f"{self._place} gave the order up: {_text(body.error)}")
            if body.status != messages.STATUS_VALID or body.certificate is None:
                return None
            return self._net_get(body.certificate).content

    def _net_get(self, url: str) -> requests.Response:
        """A POST that only asks (RFC 8555 section 6.3)."""
        return self._net.post(url, None, new_nonce_url=self._client.directory.newNonce)

    def _register(self, email: str, *, tos_accepted: bool) -> None:
        terms = getattr(self._client.directory.meta, "terms_of_service", None)
        if terms and not tos_accepted:
            raise PreconditionFailed(
                f"{self._place} has terms of service ({shown(str(terms))}); read them and set acme.tos_accepted = true"
            )
        wanted = messages.NewRegistration.from_data(email=email or None, terms_of_service_agreed=tos_accepted or None)
        try:
            self._client.new_account(wanted)
        except errors.ConflictError as known:
            self._net.account = messages.RegistrationResource(body=messages.Registration(), uri=known.location)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except IdentityError:
            raise
        except messages.Error as error:
            raise Unavailable(f"{self._place} refused: {_text(error)}") from None
        except requests.exceptions.SSLError:
            raise Unavailable(
                f"the certificate of {self._place} is not believed; name the file of its authority in acme.ca_file"
            ) from None
        except requests.exceptions.RequestException as error:
            raise Unavailable(f"cannot reach {self._place}: {type(error).__name__}") from None
        except Exception as error:  # noqa: BLE001  # the library trusts what it is sent: other members, other types
            raise Unavailable(f"{self._place} answered what cannot be read: {type(error).__name__}") from None


class _Network(client.ClientNetwork):
    """A nonce that is refused costs a try, not the order (RFC 8555 section 6.5): the library gives it two."""

    def post(self, *args: Any, **kwargs: Any) -> requests.Response:
        """Send, again and again while the nonce is refused."""
        for _ in range(_NONCE_TRIES):
            try:
                return super().post(*args, **kwargs)
            except messages.Error as error:
                if error.code != "badNonce":
                    raise
        return super().post(*args, **kwargs)


class _Bounded(requests.adapters.HTTPAdapter):
    """Answers of a bounded size."""

    def send(self, request: requests.PreparedRequest, *args: Any, **over: Any) -> requests.Response:
        """Read the whole answer, or refuse it."""
        response = super().send(request, *args, **{**over, "stream": True})
        content = response.raw.read(MAX_ANSWER_BYTES + 1, decode_content=True)
        response.close()
        if len(content) > MAX_ANSWER_BYTES:
            raise requests.exceptions.InvalidSchema(f"more than {MAX_ANSWER_BYTES} bytes")
        response._content = content  # noqa: SLF001  # the only way to give a Response its body
        return response


def _session() -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    session.max_redirects = 0
    session.adapters.clear()
    session.mount("https://", _Bounded())
    return session


def _system_store() -> str:
    """The certificate store of this system; that of the library where there is none."""
    paths = ssl.get_default_verify_paths()
    return paths.cafile or paths.capath or requests.utils.DEFAULT_CA_BUNDLE_PATH


def _text(error: object) -> str:
    """What an authority says about an error, as far as it can be shown."""
    parts = [str(getattr(error, "typ", "") or "").rpartition(":")[2], str(getattr(error, "detail", "") or "")]
    return ascii(": ".join(part for part in parts if part))[1:-1][:_MAX_TEXT] or "no reason was given"
