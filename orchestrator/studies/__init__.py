"""Studies: many settings of one configuration, searched (and learned from) as a run is, and what their results show.

    base         what a study is: settings to search, results to read, findings to write
    strategies   strategy tables: other strategies beside the configured one, other populations, equal evaluations
    running      from a configuration to findings: daemons, one search per setting, `RUN/analysis/`
    scaling      cross-entropy against population and against generations
    diversity    effective number of results against the number of searches
    targets      what a found representation is made of
    ensemble     networks learned from independent searches, beside cross-entropy from as many seeds
    figures      axes, bands and colours that the studies share

A study's folder is a run's folder: a setting is stored as a round that only searches, a network as a round that only learns, so that
`verify` and `resume` work.
Members: see `STUDIES`.
"""

from repsearch.families import Family

STUDIES = Family(
    "studies",
    {
        "scaling": "orchestrator.studies.scaling:Scaling",
        "diversity": "orchestrator.studies.diversity:Diversity",
        "targets": "orchestrator.studies.targets:Targets",
        "ensemble": "orchestrator.studies.ensemble:Ensemble",
    },
)
