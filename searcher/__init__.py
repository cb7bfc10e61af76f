"""RepSearch: searcher."""
