"""The learner: trains a network on the targets that search found, or on labels alone, and measures it.

jobs         messages in, domain calls, committed groups out
fit          the loop: batches, loss, step, checkpoint per epoch
objectives/  the loss (plug-ins): regression on targets, cross-entropy
optimisers/  how gradients change parameters (plug-ins)
schedule     learning rate and batch order as functions of step and epoch
keeping      best epoch and early stop, from the history
targets      committed targets of a round as tensors, checked
checkpoints  state after each epoch, in the store
snapshots    the network of every so many epochs, kept for analysis
evaluation   accuracy and cross-entropy on a split
cli          `learner serve`
"""
