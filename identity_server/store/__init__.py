"""identity_server.store."""
