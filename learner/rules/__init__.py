"""Learning rules: how gradients are estimated, which an optimiser then applies. Members: see `repsearch.families.RULES`.

base                 what the fit loop needs of a rule
backprop             the gradient itself
"""
