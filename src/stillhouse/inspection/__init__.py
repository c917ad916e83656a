"""Inspection: everything that can be known to be wrong before a run starts, and whether it need start at all."""

from stillhouse.inspection.inspect import Inspection, inspect_run, record_unchanged

__all__ = ["Inspection", "inspect_run", "record_unchanged"]
