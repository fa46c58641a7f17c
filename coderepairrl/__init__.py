"""Agent-in-the-loop reinforcement learning for code repair: see README.md for the way through the tree."""
