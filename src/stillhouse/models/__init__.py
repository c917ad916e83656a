"""Checkpoints, their names, and the surgery that makes small models from large ones."""
