"""Serving: the Triton model repository, the in-process runtime, and the supervised local server."""
