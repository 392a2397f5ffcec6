"""What runs inside workers: each file one task, called by `worker.call` with JSON arguments."""
