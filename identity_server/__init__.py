"""identity_server."""
