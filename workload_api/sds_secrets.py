"""What Envoy asks for by name, made of what a workload is entitled to (spire_wire section 6.2, integrations 2 to 4).

    a SPIFFE ID of the workload, or `default`      its certificate chain and key
    `spiffe://<trust domain>`                      how to validate peers of that trust domain
    `ROOTCA`                                       the same for the own trust domain
    `ALL`                                          every trust domain the workload may see; needs the SPIFFE validator

The three plain names are settings, because meshes choose their own (Istio federates behind `ROOTCA`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from spiffe_core.bundle import TrustBundle
from spiffe_core.crypto.pem import certificates_pem, private_key_pem
from spiffe_core.errors import Internal, Unavailable
from spiffe_core.wire._gen.envoy import secret_discovery_pb2 as discovery
from spiffe_core.wire._gen.envoy import secret_pb2
from workload_api.backend import WorkloadView, X509Identity
from workload_api.expiry import expiries

SECRET_TYPE: Final = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105  # a type's name
VALIDATOR: Final = "envoy.tls.cert_validator.spiffe"
DISABLE_VALIDATOR: Final = "disable_spiffe_cert_validation"
_LAST_WITHOUT_VALIDATOR: Final = (1, 17)


@dataclass(frozen=True, slots=True)
class SdsNames:
    """The operator's names, and whether the SPIFFE validator is left out for everybody."""

    default_svid: str = "default"
    default_bundle: str = "ROOTCA"
    default_all_bundles: str = "ALL"
    disable_validator: bool = False


def wants_validator(node: discovery.Node, names: SdsNames) -> bool:
    """Whether this proxy can, and should, use the SPIFFE validator: from 1.18 on, unless somebody says no."""
    if names.disable_validator:
        return False
    said = node.metadata.fields.get(DISABLE_VALIDATOR)
    if said is not None and (said.bool_value or said.string_value.lower() in {"true", "1", "t"}):
        return False
    version = node.user_agent_build_version.version
    if not node.user_agent_build_version.HasField("version"):
        return True
    return (version.major_number, version.minor_number) > _LAST_WITHOUT_VALIDATOR


class Secrets:
    """The secrets of one view, by name. Made for one proxy: `validator` says whether it knows the SPIFFE validator.

    Raises:
        Unavailable: every SVID of the view has expired; nothing expired is handed out (N-A-26).
    """

    def __init__(self, view: WorkloadView, names: SdsNames, *, validator: bool, now: datetime) -> None:
        self._names, self._validator = names, validator
        ends = expiries(view)
        self._svids = [svid for svid, end in zip(view.x509_svids, ends, strict=True) if now.timestamp() < end]
        if view.x509_svids and not self._svids:
            raise Unavailable("the identity has expired and could not be renewed yet; the agent keeps trying")
        self._own = view.bundle
        federated = view.federated if view.x509_svids else ()
        self._bundles = {str(one.trust_domain.id): one for one in (view.bundle, *federated) if one.x509_roots}

    def get(self, name: str) -> secret_pb2.Secret | None:
        """The secret of that name; None if this workload may not have it, or there is none.

        Raises:
            Internal: all bundles in one are asked for and this proxy cannot keep them apart.
        """
        svid = self._svid(name)
        if svid is not None:
            return _tls_certificate(name, svid)
        if name in self._bundles:
            return self._validation(name, [self._bundles[name]])
        if name == self._names.default_bundle and self._own.x509_roots:
            return self._validation(name, [self._own])
        if name == self._names.default_all_bundles and self._bundles:
            if not self._validator:
                raise Internal(
                    f'unable to use "{name}": without the SPIFFE validator a proxy cannot tell trust domains apart'
                )
            return self._validation(name, list(self._bundles.values()))
        return None

    def every(self) -> list[secret_pb2.Secret]:
        """Every identity and every bundle under its full name: what an empty list of names means."""
        names = [str(svid.spiffe_id) for svid in self._svids] + list(self._bundles)
        return [secret for secret in map(self.get, dict.fromkeys(names)) if secret is not None]

    def _svid(self, name: str) -> X509Identity | None:
        if name == self._names.default_svid:
            return self._svids[0] if self._svids else None
        return next((one for one in self._svids if str(one.spiffe_id) == name), None)

    def _validation(self, name: str, bundles: Sequence[TrustBundle]) -> secret_pb2.Secret:
        context = secret_pb2.CertificateValidationContext()
        if self._validator:
            config = secret_pb2.SPIFFECertValidatorConfig(trust_domains=_trust_domains(bundles))
            context.custom_validator_config.name = VALIDATOR
            context.custom_validator_config.typed_config.Pack(config, deterministic=True)
        else:
            context.trusted_ca.inline_bytes = _roots(bundles[0])
        return secret_pb2.Secret(name=name, validation_context=context)


def _tls_certificate(name: str, svid: X509Identity) -> secret_pb2.Secret:
    certificate = secret_pb2.TlsCertificate(
        certificate_chain=secret_pb2.DataSource(inline_bytes=certificates_pem(svid.chain)),
        private_key=secret_pb2.DataSource(inline_bytes=private_key_pem(svid.key)),
    )
    return secret_pb2.Secret(name=name, tls_certificate=certificate)


def _trust_domains(bundles: Iterable[TrustBundle]) -> list[Any]:
    ordered = sorted(bundles, key=lambda one: one.trust_domain.name)
    return [
        secret_pb2.SPIFFECertValidatorConfig.TrustDomain(
            name=one.trust_domain.name, trust_bundle=secret_pb2.DataSource(inline_bytes=_roots(one))
        )
        for one in ordered
    ]


def _roots(bundle: TrustBundle) -> bytes:
    return certificates_pem(bundle.x509_roots)
