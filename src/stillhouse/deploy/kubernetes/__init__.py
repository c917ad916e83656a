"""Deploying to Kubernetes: one release of charts/triton is one pinned version of one model."""
