"""The bundle client: fetches the bundles of other trust domains over HTTPS (SPIFFE Federation section 5.2).

`fetcher` implements `ports.BundleFetcher`; `endpoint_tls` says how each profile authenticates an endpoint, and
`resolution` which addresses a name may lead to.
"""

from __future__ import annotations

from identity_server.bundle_client.fetcher import HttpsBundleFetcher

__all__ = ["HttpsBundleFetcher"]
