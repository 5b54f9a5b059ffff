"""What a running daemon needs: logs, settings, owned tasks, threads for what blocks, durable files, health, metrics."""
