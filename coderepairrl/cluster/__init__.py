"""From a grid of runs to Slurm jobs: plan, site, submission, and what runs on each node."""
