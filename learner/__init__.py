"""RepSearch: learner."""
