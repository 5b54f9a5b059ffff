"""The bundle endpoint (SPIFFE Federation section 5): our trust bundle for whoever asks.

    /                          our bundle, the document of the standard
    /bundle-map.json           a bundle map (Trust Domain and Bundle section 5) of X.509 authorities, as gRPC reads it
    /bundles/{trust_domain}    the bundle of one trust domain by its name
    /openapi.json              the description of all of them

The documents are finished bytes, made anew when a bundle changes. What other trust domains are is shown only where
`bundle_map` says "all".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Header, Path
from fastapi.responses import Response

from identity_server.web.app import web_app
from identity_server.web.documents import Document, Headers, Scope, Site
from spiffe_core.bundle import BundleSet, TrustBundle
from spiffe_core.bundle_document import dump_bundle, dump_bundle_map
from spiffe_core.errors import NotFound
from spiffe_core.spiffe_id import MAX_TRUST_DOMAIN_BYTES, TrustDomain

OWN = "/"
MAP = "/bundle-map.json"
_NAME = "^[a-z0-9._-]+$"
_ERROR = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
_BUNDLE = {
    "type": "object",
    "properties": {
        "keys": {"type": "array", "items": {"type": "object", "required": ["kty", "use"]}},
        "spiffe_sequence": {"type": "integer"},
        "spiffe_refresh_hint": {"type": "integer"},
    },
    "required": ["keys"],
}


class BundleDocuments:
    """The documents, kept until the bundle they were made of is another.

    `own` raises Unavailable while there is none.
    """

    def __init__(
        self,
        own: Callable[[], TrustBundle],
        bundles: Callable[[], BundleSet | None],
        shown: Literal["off", "own", "all"],
    ) -> None:
        self._own, self._bundles, self._shown = own, bundles, shown
        self._made: dict[str, tuple[object, Document]] = {}

    def find(self, scope: Scope) -> Document | None:
        """The document at a path."""
        path = scope["path"]
        if path == OWN:
            return self._bundle(self._own())
        if path == MAP and self._shown != "off":
            return self._map()
        return None

    def of(self, name: TrustDomain) -> Document:
        """The bundle of one trust domain.

        Raises:
            NotFound: it has none here, or none that is shown.
        """
        own = self._own()
        if name == own.trust_domain:
            return self._bundle(own)
        found = self._others().get(name)
        if found is None:
            self._made.pop(name.name, None)
            raise NotFound("no bundle of this trust domain is published here")
        return self._bundle(found)

    def _others(self) -> dict[TrustDomain, TrustBundle]:
        bundles = self._bundles() if self._shown == "all" else None
        return dict(bundles.federated) if bundles is not None else {}

    def _bundle(self, bundle: TrustBundle) -> Document:
        return self._kept(bundle.trust_domain.name, bundle, lambda: dump_bundle(bundle))

    def _map(self) -> Document:
        own, bundles = self._own(), self._bundles() if self._shown == "all" else None

        def make() -> bytes:
            shown = [own, *(bundles.federated[name] for name in sorted(bundles.federated))] if bundles else [own]
            return dump_bundle_map([replace(one, jwt_authorities=(), wit_authorities=()) for one in shown])

        return self._kept(MAP, (own, bundles), make)

    def _kept(self, name: str, made_of: object, make: Callable[[], bytes]) -> Document:
        known = self._made.get(name)
        if known is None or not _same(known[0], made_of):
            known = self._made[name] = (made_of, Document(make()))
        return known[1]


def bundle_site(documents: BundleDocuments, own: TrustDomain) -> Site:
    """The application of a bundle endpoint; `own` is the example in its description."""
    return Site(documents.find, _app(documents, own))


def _app(documents: BundleDocuments, own: TrustDomain) -> FastAPI:
    app = web_app("SPIFFE bundle endpoint", "The trust bundle of a trust domain (SPIFFE Federation).")

    name = Path(min_length=1, max_length=MAX_TRUST_DOMAIN_BYTES, pattern=_NAME, examples=[own.name])

    @app.head("/bundles/{trust_domain}", include_in_schema=False, response_class=Response)
    @app.get(
        "/bundles/{trust_domain}",
        summary="The bundle of one trust domain",
        response_class=Response,
        responses=_responses(_BUNDLE),
    )
    async def bundle(
        trust_domain: str = name,
        if_none_match: Annotated[str, Header(description="An entity tag: 304 while it is still the one")] = "",
    ) -> Response:
        found = documents.of(TrustDomain(trust_domain))
        if found.is_named_by(if_none_match.encode("latin-1")):
            return Response(status_code=304, headers=_text(found.unchanged))
        return Response(found.body, headers=_text(found.headers))

    return app


def _text(headers: Headers) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in headers}


def _responses(schema: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    answers: dict[int | str, dict[str, Any]] = {
        200: {"description": "The document", "content": {"application/json": {"schema": schema}}},
        304: {"description": "The document is the one the entity tag names"},
    }
    for status, why in (
        (404, "No bundle of this trust domain is published here"),
        (422, "Not a trust domain name"),
        (503, "Nothing may be published yet"),
    ):
        answers[status] = {"description": why, "content": {"application/json": {"schema": _ERROR}}}
    return answers


def _same(one: object, other: object) -> bool:
    """Whether both are the same objects: bundles are large, and replaced as a whole."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return all(a is b for a, b in zip(one, other, strict=True))
    return one is other
