"""node_agent.domain."""
