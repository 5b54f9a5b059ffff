"""attestors.node."""
