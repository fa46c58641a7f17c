"""A run as a folder: its driver, attempts, inputs, provenance, metrics, summary; and what every program does at its
edge."""
