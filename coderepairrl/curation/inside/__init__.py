"""What runs in a sandbox under a suite's own Python: pytest and the standard library only."""
