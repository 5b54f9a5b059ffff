"""node_agent.services."""
