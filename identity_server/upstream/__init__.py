"""Upstream authorities: who signs this server's CA certificate when it does not sign its own.

One module per kind, loaded only if `[upstream] kind` names it. Each implements `ports.UpstreamAuthority`.
"""
