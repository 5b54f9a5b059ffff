"""An ACME certificate as the settings describe it, ready to be kept and presented."""

from __future__ import annotations

import random  # noqa: TID251  # the rim: jitter is drawn here and passed down
from pathlib import Path

from identity_server.settings_federation import AcmeSection
from identity_server.web.acme import AcmeCertificate, AcmeSettings
from identity_server.web.acme_answers import AcmeAnswers
from identity_server.web.acme_store import AcmeStore
from spiffe_core.clock import Clock


def acme_certificate(
    section: AcmeSection, domain: str, folder: Path, clock: Clock
) -> tuple[AcmeCertificate, AcmeAnswers]:
    """The certificate for `domain`, kept below `folder`, and what validators are answered."""
    answers = AcmeAnswers()
    settings = AcmeSettings(
        directory_url=section.directory_url,
        domain=domain,
        email=section.email,
        tos_accepted=section.tos_accepted,
        kinds=("tls-alpn-01",) if section.http01 is None else ("http-01", "tls-alpn-01"),
        ca_file=section.ca_file,
    )
    store = AcmeStore(folder, section.directory_url, domain)

    def jitter() -> float:
        return random.uniform(-1, 1)  # noqa: S311  # spreads load, guards nothing

    return AcmeCertificate(settings, store, answers, clock, jitter), answers
