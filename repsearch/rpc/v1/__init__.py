"""Stubs generated from `proto/repsearch/rpc/v1` by `make protos`; committed, never edited."""
