"""RepSearch's shared leaf: configuration, families, seeding, networks, datasets, serving and the generated RPC stubs."""

__version__ = "0.1.0"
