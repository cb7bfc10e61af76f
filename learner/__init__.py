"""The learner: trains a network on the targets that search found, or on labels alone, and measures it.

jobs         messages in, domain calls, committed groups out
fit          the loop: batches, loss, step, checkpoint per epoch
forward      a batch through the network: precision, compilation
batches      where batches come from: the training set in memory
streaming    the same for targets larger than memory
memory       what targets take, and what fits under a limit
objectives/  the loss (plug-ins): regression on targets, cross-entropy
rules/       how gradients are estimated (plug-ins)
optimisers/  how gradients change parameters (plug-ins)
schedule     learning rate and batch order as functions of step and epoch
shortage     what is said when memory runs out
keeping      best epoch and early stop, from the history
targets      committed targets of a round, checked
checkpoints  state after each epoch, in the store
snapshots    the network of every so many epochs, kept for analysis
evaluation   accuracy and cross-entropy on a split
cli          `learner serve`
"""
