"""Values of a run's configuration that may change when it is resumed: where and how it is computed, and how many rounds, not what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.policies import make_policy
from orchestrator.preflight import planned
from orchestrator.runs import Run
from repsearch.config import RunConfig, learn_digest, parse_config, search_digest, with_overrides
from repsearch.errors import ConfigError

SECTIONS = ("searcher", "learner", "tls", "tracking")
FIELDS = (
    "rounds.count",
    "rounds.keep",
    "rounds.max_seconds",
    "rounds.max_evaluations",
    "learn.keep_checkpoints",
    "learn.checkpoint_seconds",
)
PLACES = ("dataset.root",)


def changed(run: Run, overrides: Sequence[str], *, done: int) -> Run:
    """Return `run` with the values that `overrides` (a.b=value) set; `done`: rounds that are finished.

    Raises `ConfigError` with every value that was and would be, for those that must not change.
    """
    if not overrides:
        return run
    before = run.config.model_dump(mode="json")
    config = parse_config(with_overrides(before, overrides))
    after = config.model_dump(mode="json")
    different = _differences(before, after)
    # Fields that are newer than the run have their defaults, in which it was run; the digests below tell if that were not so.
    set_here = _differences(parse_config(before).model_dump(mode="json"), after)
    refused = {path: values for path, values in set_here.items() if not _allowed(path)}
    same = search_digest(config) == search_digest(run.config) and learn_digest(config) == learn_digest(run.config)
    if refused or not same:
        raise ConfigError(
            f"--set: {run.name} was started with other values, which its results depend on:\n{_diff(refused or different)}\n"
            f"only these may change on resume: {', '.join([*(f'{name}.*' for name in SECTIONS), *FIELDS, *PLACES])}; "
            "for other values start a new run"
        )
    if config.rounds.count != run.config.rounds.count:
        _check_rounds(run, config, done)
    return replace(run, config=config)


def _check_rounds(run: Run, config: RunConfig, done: int) -> None:
    """Raise `ConfigError` unless the rounds that are done are those of a run of as many rounds as `config` wants."""
    was, wanted = run.config.rounds.count, config.rounds.count
    diff = _diff({"rounds.count": (was, wanted)})
    if wanted < was:
        raise ConfigError(
            f"--set: a run is resumed with more rounds, not with fewer:\n{diff}\nto end it sooner: orchestrator stop {run.folder}"
        )
    if config.learn.start == "continue":
        raise ConfigError(
            f'--set: with learn.start = "continue" the schedule of the learning rate spans all rounds, so their number must stay:\n{diff}\n'
            "start a new run"
        )
    examples = run.dataset["train"]
    plans = [planned(make_policy(c), c, examples)[:done] for c in (run.config, config)]
    if plans[0] != plans[1]:
        raise ConfigError(f"--set: with so many rounds those that are done would have been other ones:\n{diff}\nstart a new run")


def _allowed(path: str) -> bool:
    return path.partition(".")[0] in SECTIONS or any(path == field or path.startswith(f"{field}.") for field in (*FIELDS, *PLACES))


def _diff(values: Mapping[str, tuple[Any, Any]]) -> str:
    return "\n".join(f"  {path}: {was!r} -> {wanted!r}" for path, (was, wanted) in values.items())


def _differences(before: Any, after: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Return what differs, by path."""
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return {path: (before, after)} if before != after else {}
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted({*before, *after}):
        found |= _differences(before.get(name), after.get(name), f"{path}.{name}".lstrip("."))
    return found
