"""Optimisers: how gradients change parameters. Members: see `repsearch.families.OPTIMISERS`."""
