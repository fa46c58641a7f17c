"""Supervised fine-tuning: conversations and trajectories as rows."""
