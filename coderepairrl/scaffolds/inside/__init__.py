"""What runs under an agent's own Python, in the sandbox or beside it: the standard library only."""
