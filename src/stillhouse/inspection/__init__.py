"""Inspection: everything that can be known to be wrong before a run starts."""

from stillhouse.inspection.inspect import Inspection, inspect_run

__all__ = ["Inspection", "inspect_run"]
