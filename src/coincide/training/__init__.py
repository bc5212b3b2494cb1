"""Training: configuration, the one loop, checkpoints, ranks, restarts.

Its parts are imported by name (``coincide.training.loop``), so that the configuration can be read
without loading PyTorch.
"""
