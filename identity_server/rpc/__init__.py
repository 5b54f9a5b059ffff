"""The server's gRPC services: messages become values, use-cases are called, and what they say becomes an answer."""
