"""Learning rules: how gradients are estimated, which an optimiser then applies. Members: see `repsearch.families.RULES`.

base                  what the fit loop needs of a rule
layers                linear maps and convolutions: pre-activations, and gradients from their errors
passes                a network run in parts, each with a loss of its own
suitability           networks and settings that a rule cannot serve
directions, tangents  random directions, and estimates from derivatives along them
decorrelation         layer inputs decorrelated by a matrix trained beside the weights
"""
