"""identity_server.domain."""
