"""Learning objectives: the loss that trains a network. Members: see `repsearch.families.OBJECTIVES`."""
