"""RepSearch: orchestrator."""
