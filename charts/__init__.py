"""Helm charts, as package data: an installed Stillhouse deploys with the charts that it was tested with."""
