"""The settings of upstream authorities: `[upstream]` names the kind, and one table below it describes it.

A kind is a key of `UpstreamSection` of the same name. Without `[upstream]` the server signs its own CA certificate.
"""

from __future__ import annotations

from typing import Literal, Self, get_args

from pydantic import model_validator

from identity_server.settings_upstream_network import UpstreamSpireSection, UpstreamVaultSection
from spiffe_core.runtime.settings import FilePath, Section

UpstreamKind = Literal["disk", "spire", "vault"]


class UpstreamDiskSection(Section):
    """[upstream.disk]: a CA certificate and its key in PEM files, read again whenever they change.

    Where the certificate is not self-signed, `cert_file` also holds the certificates between it and the root, and
    `bundle_file` the roots that are trusted.
    """

    cert_file: FilePath
    key_file: FilePath
    bundle_file: FilePath | None = None

    @model_validator(mode="after")
    def _absolute(self) -> Self:
        for key in ("cert_file", "key_file", "bundle_file"):
            path = getattr(self, key)
            if path is not None and not path.is_absolute():
                raise ValueError(f"{key} must be an absolute path")
        return self


class UpstreamSection(Section):
    """[upstream]: who signs this server's CA certificate."""

    kind: UpstreamKind
    disk: UpstreamDiskSection | None = None
    spire: UpstreamSpireSection | None = None
    vault: UpstreamVaultSection | None = None

    @model_validator(mode="after")
    def _one_table(self) -> Self:
        given = [kind for kind in get_args(UpstreamKind) if getattr(self, kind) is not None]
        if self.kind not in given:
            raise ValueError(f'kind is "{self.kind}", so the table [upstream.{self.kind}] is required')
        for other in given:
            if other != self.kind:
                raise ValueError(f'kind is "{self.kind}", so the table [upstream.{other}] must be left out')
        return self
