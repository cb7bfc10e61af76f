"""Benchmarks: each script prints a table and writes JSON with `--json FILE`."""
