"""A study from start to end: preflight -> daemons -> a search per setting -> networks -> analysis; and the same again for `resume`.

Every setting is searched as a round without learning, number by number, all on the untrained network of round 0. What a study learns
from them are rounds without search, after those:

rounds/00003/search/...     the shards of setting 3;  round.json: those that count;  report.json: the setting
analysis/*.png, *.csv       what they show, written anew by every opening of the study
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.daemons import check_fleet
from orchestrator.execution import check_same_data, daemons, new_run, opened, resumable
from orchestrator.learning import learn_network
from orchestrator.policies import RoundPlan
from orchestrator.preflight import Preflight, check_run
from orchestrator.progress import Display
from orchestrator.remote import refuse_store_root
from orchestrator.runs import Run, RunLock, choose_name, create_folder, open_run, run_root, save_run
from orchestrator.searching import initial_network, search_round
from orchestrator.studies import STUDIES
from orchestrator.studies.base import (
    ANALYSIS,
    Base,
    Learning,
    LearningResult,
    LearningStudy,
    Results,
    Setting,
    SettingResult,
    Study,
    images_of,
    write_findings,
)
from orchestrator.studies.strategies import built
from orchestrator.work import Work, as_document, document_there
from repsearch.config import RunConfig, learn_digest, load_config, parse_config, search_digest
from repsearch.errors import ConfigError
from repsearch.families import OBJECTIVES
from store import Reference, layout

if TYPE_CHECKING:
    from repsearch.datasets.base import Data

OVERRIDE = "study."


@dataclass(frozen=True)
class Prepared:
    """A study that could start: its name and fields, the checks, and what it will search."""

    name: str
    toml: bytes
    fields: Mapping[str, Any]
    preflight: Preflight
    study: Study
    settings: Sequence[Setting]


def prepare(kind: str, path: Path, overrides: Sequence[str], name: str | None, fields: Mapping[str, Any]) -> Prepared:
    """Return the study `kind` of configuration file `path`, fully checked; writes and starts nothing.

    `overrides` that begin with `study.` set fields of the study, as `fields` do; the others those of the configuration.
    """
    table = study_table(kind, [text for text in overrides if text.startswith(OVERRIDE)], fields)
    config = study_config(load_config(path, [text for text in overrides if not text.startswith(OVERRIDE)]))
    refuse_store_root(config.store.root, "a study")
    chosen = choose_name(run_root(config), f"{path.stem}-{kind}", name, baseline=False)
    preflight, study, settings = _checked(config, table)
    return Prepared(chosen, path.read_bytes(), table, preflight, study, settings)


def study_table(kind: str, overrides: Sequence[str], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return name and fields of study `kind`, all defaults filled in; raises `ConfigError` for an unknown study or field."""
    from repsearch.config import with_overrides

    given = with_overrides({}, overrides).get("study", {})
    return STUDIES.resolve({"name": kind, **fields, **given}, at="study")


def study_config(config: RunConfig) -> RunConfig:
    """Return `config` as a study searches it: one round, on the untrained network, without a baseline."""
    table = config.model_dump(mode="json")
    table["run"]["baseline"] = False
    table["rounds"] = {"policy": "one_shot", "count": 1}
    return parse_config(table)


def start(prepared: Prepared, display: Display) -> Path:
    """Run a prepared study to the end and return its folder."""
    run = new_run(prepared.preflight, prepared.name, study=prepared.fields)
    with daemons(prepared.preflight, display) as fleet:
        check_fleet(run, fleet)
        create_folder(run, prepared.toml)
        display.message(f"study {prepared.fields['name']} in {run.folder}: {len(prepared.settings)} settings")
        with resumable(run), RunLock(run.folder), opened(run, list(prepared.preflight.layers), fleet, display, resumed=False) as work:
            perform(work, prepared.preflight, prepared.study, prepared.settings)
    return run.folder


def resume(folder: Path, display: Display) -> Path:
    """Go on with the study in `folder`: search what is missing, and analyse again."""
    run = open_run(folder)
    with RunLock(folder), resumable(run):
        run = replace(open_run(folder), term=open_run(folder).term + 1)
        preflight, study, settings = _checked(run.config, run.study)
        check_same_data(run, preflight)
        save_run(run)
        with daemons(preflight, display) as fleet:
            check_fleet(run, fleet)
            display.message(f"resuming study {run.study['name']} in {folder}, term {run.term}")
            with opened(run, list(preflight.layers), fleet, display, resumed=True) as work:
                perform(work, preflight, study, settings)
    return folder


def perform(work: Work, preflight: Preflight, study: Study, settings: Sequence[Setting]) -> None:
    """Search every setting, and write what they show to the folder's `analysis`."""
    network = initial_network(work)
    found = []
    for number, setting in enumerate(settings):
        work.display.message(f"setting {number + 1} of {len(settings)}: {setting.name}")
        found.append(search_setting(work, number, setting, network))
    learned = []
    for number, learning in enumerate(study.learnings(base_of(preflight)) if isinstance(study, LearningStudy) else []):
        work.display.message(f"network {learning.name}")
        learned.append(learn_setting(work, len(settings) + number, learning, found[0]))
    results = Results(
        base=base_of(preflight),
        name=work.run.name,
        settings=found,
        classes=work.run.dataset["classes"],
        seed=work.run.config.run.seed,
        learned=learned,
        **_examples(work.run),
    )
    write_findings(work.run.folder / ANALYSIS, study.analyse(results))
    work.log.append("analysis_ready", path=ANALYSIS)


def search_setting(work: Work, number: int, setting: Setting, network: Reference) -> SettingResult:
    """Return the results of a setting, searched now or before."""
    config = setting_config(work.run.config, setting)
    run = replace(work.run, config=config, digests={**work.run.digests, "search": search_digest(config)})
    run = replace(run, dataset={**run.dataset, "train": images_of(run.study, run.dataset["train"])})
    plan = RoundPlan(round=number, search=True, searched_round=None, warm_round=None, epochs=0)
    described = {"name": setting.name, "strategy": dict(setting.strategy), "searches_per_example": setting.searches}
    work.log.once("round_started", number, plan={**plan.to_dict(), "setting": described})
    record = search_round(replace(work, run=run), plan, network)
    if not document_there(work.store, layout.report_document(number)):
        work.store.write_document(layout.report_document(number), {"setting": described, "cross_entropy": dict(record.after)}, create=True)
    return SettingResult(setting, record, work.store, work.layers)


def learn_setting(work: Work, number: int, learning: Learning, searched: SettingResult) -> LearningResult:
    """Return a network learned from the results `searched`, now or before; stored as round `number`."""
    config = learning_config(work.run.config, learning, searched.setting)
    run = replace(work.run, config=config, digests={**work.run.digests, "learn": learn_digest(config)})
    plan = RoundPlan(round=number, search=False, searched_round=None, warm_round=None, epochs=config.learn.epochs)
    described = {"name": learning.name, "learn": dict(learning.learn)}
    work.log.once("round_started", number, plan={**plan.to_dict(), "setting": described})
    here = replace(work, run=run)
    nothing = search_round(here, plan, None)
    # Batches as of one round for all: what is to differ is in the configuration.
    record = learn_network(here, plan, nothing if _from_labels(config) else searched.record, None, drawn_as=0)
    if not document_there(work.store, layout.report_document(number)):
        document = {"setting": described, "learned": as_document(record.network)}
        work.store.write_document(layout.report_document(number), document, create=True)
    return LearningResult(learning, config, record)


def learning_config(config: RunConfig, learning: Learning, setting: Setting) -> RunConfig:
    """Return `config` with what `learning` changes, reading the results of `setting`."""
    table = setting_config(config, setting).model_dump(mode="json")
    return parse_config({**table, "learn": {**table["learn"], **learning.learn}})


def _from_labels(config: RunConfig) -> bool:
    return not OBJECTIVES.build(config.learn.objective, at="learn.objective").needs_targets(config.search.layers)


def setting_config(config: RunConfig, setting: Setting) -> RunConfig:
    """Return `config` with the strategy and the number of results of `setting`."""
    search = config.search.model_copy(update={"strategy": dict(setting.strategy), "searches_per_example": setting.searches})
    return config.model_copy(update={"search": search})


def base_of(preflight: Preflight) -> Base:
    """Return what settings are derived from."""
    return Base(config=preflight.config, layers=preflight.layers, classes=len(preflight.dataset["classes"]))


def _checked(config: RunConfig, table: Mapping[str, Any]) -> tuple[Preflight, Study, list[Setting]]:
    """Return checks, study and settings; raises the error of the first fault found."""
    study: Study = STUDIES.build(table, at="study")
    preflight = check_run(config)
    there = preflight.dataset["train"]
    images = images_of(table, there)
    if not 1 <= images <= there:
        raise ConfigError(f"study.images: {images} images to search, but there are {there} training images; give 1 to {there}")
    base = base_of(preflight)
    settings = study.settings(base)
    for setting in settings:
        built(base, setting.strategy)
    return preflight, study, settings


def _examples(run: Run) -> dict[str, Any]:
    from repsearch.datasets import load_data

    data: Data = load_data(run.config.dataset, seed=run.config.run.seed)
    count = images_of(run.study, run.dataset["train"])
    images, labels = data.train.images[:count], data.train.labels[:count]
    return {"images_NCHW": np.asarray(images.numpy()), "labels_N": np.asarray(labels.numpy())}
