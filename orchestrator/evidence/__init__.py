"""Evidence: tables of methods under equal conditions, made again by one command (`orchestrator reproduce`).

    scales     what every row of a dataset has in common, small enough for a CPU or as the source paper has it
    rows       a row: a method, as settings and the space they are chosen from
    tables     the tables and their rows
    running    every row: a sweep on validation, then runs over seeds; results appended to a file
    results    that file
    rendering  results as Markdown and as a plot

Every method has the same number of trials, drawn alike; the settings are chosen on validation, with a seed that no final run has.
"""
