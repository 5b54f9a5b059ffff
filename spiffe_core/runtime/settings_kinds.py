"""Whose settings file this is: told by the top-level keys that only one kind of file has.

A file that was given to the wrong program is named as what it is, instead of one line for each key that is unknown
there. Keys that several kinds share (`trust_domain`, `data_dir`, ...) decide nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

SHARED = frozenset(
    {
        *(
            "trust_domain",
            "data_dir",
            "socket_path",
            "log_level",
            "log_file",
            "log_format",
            "log_source_location",
            "jwt",
            "wit",
            "attestors",
        ),
        *("limits", "health_checks", "telemetry", "tracing"),
    }
)
SERVER, AGENT, FILES, OIDC = "identity-server", "node-agent", "node-agent files", "identity-server oidc"
KINDS: Mapping[str, frozenset[str]] = {
    SERVER: SHARED
    | {
        *("bind_address", "bind_port", "ca", "experimental", "svid", "upstream", "database", "audit", "ratelimit"),
        *("federation", "oidc", "publish"),
    },
    AGENT: SHARED
    | {
        *("server_address", "server_port", "admin_socket_path", "authorized_delegates", "trust_bundle_path"),
        *("trust_bundle_format", "insecure_bootstrap", "join_token_file", "join_token", "sync_interval", "peer_pidfd"),
        *(
            "workload_x509_svid_key_type",
            "allow_unauthenticated_verifiers",
            "wait_for_identity",
            "workload_api",
            "sds",
            "broker",
        ),
        *("availability_target", "files_config", "key_manager", "push", "rebootstrap_delay", "rebootstrap_mode"),
        *("strict", "trust_bundle_url", "trust_bundle_unix_socket", "trust_bundle_spiffe_workload_api"),
    },
    FILES: frozenset({"socket", "command_seconds", "set"}),
    OIDC: frozenset(
        {
            *("domains", "jwt_issuer", "jwks_uri", "server_path_prefix", "set_key_use", "allow_insecure_scheme"),
            *("trust_forwarded_host", "insecure_addr", "listen_socket_path", "server_api", "workload_api", "file"),
            *(
                "serving_cert_file",
                "acme",
                "keep_keys",
                "log_level",
                "log_file",
                "log_format",
                "log_source_location",
                "log_requests",
                "health_checks",
                "telemetry",
            ),
        }
    ),
}
"""Kind of file -> its top-level keys."""
HOW: Mapping[str, str] = {
    SERVER: "identity-server run --config",
    AGENT: "node-agent run --config",
    FILES: "node-agent files --config",
    OIDC: "identity-server oidc --config",
}
MAX_SHOWN_KEYS = 3


def mistaken(kind: str, given: Iterable[str]) -> str:
    """What to say about a file with these top-level keys that was given as `kind`; "" if it may be one."""
    own, keys = KINDS[kind], frozenset(given)
    other = max(KINDS, key=lambda one: len(keys & KINDS[one]))
    telling = sorted(keys & KINDS[other] - own)
    if not telling or keys & own - KINDS[other]:
        return ""
    return (
        f"this is {_article(other)} {other} file: {', '.join(telling[:MAX_SHOWN_KEYS])} "
        f"{'belongs' if len(telling) == 1 else 'belong'} to {other}, not to {kind}. "
        f"Start it with `{HOW[other]}`, or give the path of {_article(kind)} {kind} file"
    )


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
