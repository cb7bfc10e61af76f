"""Sweeps: runs of one configuration with other values, chosen by Optuna on the validation result.

    space     what is chosen, from TOML, and how Optuna is asked for it
    settings  the `[sweep]` table, and everything that is checked before a sweep starts
    choosing  trials: which values come next, what they gave, which are best
    running   from a configuration to the best values: workers, trials, `best.toml`; and the same again for `resume`
    pool      worker processes, each with daemons that live as long as it does
    worker    such a process: performs one run after another

A sweep's folder holds its trials, each a run's folder: `RUNS/mnist-sweep-1/trial-0003`.
"""
