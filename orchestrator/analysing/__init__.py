"""Analysis of finished runs: `orchestrator analyse RUN...`.

    subjects  what is analysed: a round of a run, its networks by epoch, its targets; what is refused
    outputs   networks run on images: representations and logits as arrays (the only module here that needs torch)
    tables    rows of every table, from arrays
    figures   figures from rows
    command   from folders to files, journal and MLflow

The measures themselves are in `orchestrator.analysis`.
"""
