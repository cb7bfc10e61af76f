"""RepSearch: store."""
