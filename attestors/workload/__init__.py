"""attestors.workload."""
