"""What a running daemon needs: logs, settings, tasks with an owner, threads for what blocks, durable files, health, metrics."""
