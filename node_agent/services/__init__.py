"""Use-cases of the agent: each does what the domain decides and feeds back what happened."""
