"""Groups of episodes: which run next, what becomes of each, and where it is written down."""
