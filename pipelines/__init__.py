"""Pipelines: how the components are wired, the presets, and the command that compiles or runs them."""
