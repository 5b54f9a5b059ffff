"""identity_server.rpc."""
