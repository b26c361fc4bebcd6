"""The whole loop in one process: stage after stage, each skipped when its inputs are unchanged."""
