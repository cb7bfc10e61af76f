"""Results of the evidence tables, and the command that makes them; see docs/evidence.md."""
