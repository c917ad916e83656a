"""Measuring candidates side by side, choosing one by policy, and reporting why."""
