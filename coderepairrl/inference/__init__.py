"""vLLM's life: start, health, restart with the newest weights."""
