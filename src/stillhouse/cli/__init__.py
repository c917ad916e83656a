"""The command line: `stillhouse run`, `compile`, `serve`, `predict`, `models` and `report`."""
