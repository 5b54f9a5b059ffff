"""The listeners of a discovery provider, as its settings name them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from identity_server.domain.oidc_documents import Documents, Provider
from identity_server.settings_oidc import OidcAcmeSection, OidcNames, ServingCertFileSection, host_and_port
from identity_server.web.certificate_files import CertificateFiles
from identity_server.web.documents import Site
from identity_server.web.endpoints import Endpoint
from identity_server.web.listener import WebLimits, WebListener
from identity_server.web.oidc_discovery import OidcDiscovery
from identity_server.web.tls import WebTls
from spiffe_core.clock import Clock


def discovery_endpoints(
    settings: OidcNames,
    provider: Provider,
    current: Callable[[], Documents],
    clock: Clock,
    limits: WebLimits,
    acme_folder: Path,
    *,
    table: str = "",
    answered: Callable[[str, int], None] | None = None,
) -> list[Endpoint]:
    """The endpoints, not yet open. `table` is where the keys stand in the file, as "oidc.".

    `answered` is told of each answer: which document was asked for, and the status.
    `acme_folder` is where a certificate of an ACME authority is kept if the settings do not say.

    Raises:
        ConfigError: a certificate cannot be read.
    """
    application = OidcDiscovery(
        provider,
        current,
        forwarded_host=settings.trust_forwarded_host,
        log_requests=settings.log_requests,
        answered=answered,
    )
    made = []
    if settings.serving_cert_file is not None:
        made.append(_https(settings.serving_cert_file, application, clock, limits, f"{table}serving_cert_file"))
    if settings.acme is not None:
        domain = settings.acme.domain_name or provider.domains[0].host
        folder = settings.acme.cache_dir or acme_folder
        made += _acme(settings.acme, domain, folder, application, clock, limits, f"{table}acme")
    if settings.insecure_addr:
        plain = WebListener(application, tls=None, now=clock.now, limits=limits)
        host, port = host_and_port(settings.insecure_addr)
        made.append(Endpoint("OIDC discovery (plain HTTP)", plain, host, port, f"{table}insecure_addr"))
    if settings.listen_socket_path is not None:
        plain = WebListener(application, tls=None, now=clock.now, limits=limits)
        field = f"{table}listen_socket_path"
        made.append(Endpoint("OIDC discovery (plain HTTP)", plain, "", 0, field, path=settings.listen_socket_path))
    return made


def _https(
    section: ServingCertFileSection, application: OidcDiscovery, clock: Clock, limits: WebLimits, field: str
) -> Endpoint:
    files = CertificateFiles(
        section.cert_file_path,
        section.key_file_path,
        seconds=section.file_sync_interval.total_seconds(),
        clock=clock,
        field=field,
    )
    listener = WebListener(application, tls=WebTls(files.identity).current, now=clock.now, limits=limits)
    host, port = host_and_port(section.addr)
    return Endpoint("OIDC discovery (HTTPS)", listener, host, port, f"{field}.addr", (files,))


def _acme(
    section: OidcAcmeSection,
    domain: str,
    folder: Path,
    application: OidcDiscovery,
    clock: Clock,
    limits: WebLimits,
    field: str,
) -> list[Endpoint]:
    """The endpoint, and the one that proves its name where that goes over HTTP."""
    from identity_server.web.acme_opening import acme_certificate

    certificate, answers = acme_certificate(section, domain, folder, clock)
    tls = WebTls(certificate.identity).current
    listener = WebListener(application, tls=tls, now=clock.now, limits=limits, validators=answers)
    made = [
        Endpoint(
            "OIDC discovery (HTTPS, ACME)", listener, *host_and_port(section.addr), f"{field}.addr", (certificate,)
        )
    ]
    if section.http01 is not None:
        plain = WebListener(Site(answers.find), tls=None, now=clock.now, limits=limits)
        address, port = section.http01.address, section.http01.port
        made.append(Endpoint("ACME validation (http-01)", plain, address, port, f"{field}.http01"))
    return made
