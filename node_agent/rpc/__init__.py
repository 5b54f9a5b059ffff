"""What the agent itself offers over gRPC, beside the Workload API."""
