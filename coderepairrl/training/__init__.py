"""Trajectories to packed rows to a step: batches, algorithms, DeepSpeed, the model."""
