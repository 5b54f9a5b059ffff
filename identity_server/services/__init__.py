"""identity_server.services."""
