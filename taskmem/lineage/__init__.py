"""Lineage: what a run was made of, so that an adapter can be traced and made again."""
