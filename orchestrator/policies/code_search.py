"""Search of the targets of classes: the loop measures what a class code teaches, and proposes the next codes from that.

 round 0              the shared warm start: a few epochs on the configuration's class code (none with `warm_epochs = 0`)
 then, by generation  one candidate a round: its code as the target, learned briefly from the warm start; its fitness is the result on
                      the examples of `dataset.fitness`, which are neither trained on nor part of validation or test
 the last round       the best code, learned for `learn.epochs`
No candidate of a generation depends on another, and a round is committed by itself: a resumed run goes on within a generation. All
candidates draw the same random numbers in learning, so that they differ in their codes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from orchestrator.policies.base import RoundPlan
from orchestrator.policies.genomes import Gene, Genome
from orchestrator.policies.proposals import Method, Space, distribution_mean, proposed
from repsearch.config import LOGITS, RunConfig
from repsearch.errors import ConfigError
from repsearch.seeding import seed_of

if TYPE_CHECKING:
    from orchestrator.report import RoundReport

STRATEGY = "class_code"


@dataclass(frozen=True, kw_only=True)
class CodeSearch:
    """Generations of class codes, each candidate learned briefly in a round of its own, then the best one in full.

    population: codes per generation; `rounds.count` is those of all generations, the warm start and the last round.
    epochs: epochs of a candidate's round.
    warm_epochs: epochs of the shared warm start in round 0; 0: none, and candidates learn from initial parameters.
    method: how codes follow from the fitness of those before: separable CMA-ES, a genetic algorithm, or at random with a seed of its own
        for each code (the control).
    fitness: what decides on `dataset.fitness`: the lowest cross-entropy, or the highest accuracy. After brief learning cross-entropy says
        more of the code and less of luck (docs/design/0014-code-search.md).
    result: the code of the last round: of the best candidate, or (evolution_strategy) the mean of the distribution.
    genes: what is searched of the code: `latent` (numbers per class and block that move it), `frequency`, `strength` (per block), `mix`,
        `codes` (codes per class, up to `codes_per_class`). The others stay as in `[search.strategy]`.
    latent: numbers per class, code and block.
    per_block: each block has numbers of its own, or all blocks share those of a class.
    classes: classes of the dataset.
    step: standard deviation of the first generation's vectors.
    """

    searches: ClassVar[bool] = True

    population: Annotated[int, Field(ge=2)] = 8
    epochs: Annotated[int, Field(ge=1)] = 2
    warm_epochs: Annotated[int, Field(ge=0)] = 2
    method: Method = "evolution_strategy"
    fitness: Literal["accuracy", "cross_entropy"] = "cross_entropy"
    result: Literal["best", "mean"] = "best"
    genes: Annotated[list[Gene], Field(min_length=1)] = field(default_factory=lambda: ["latent", "frequency"])
    latent: Annotated[int, Field(ge=1, le=1024)] = 8
    per_block: bool = True
    classes: Annotated[int, Field(ge=2)] = 10
    step: Annotated[float, Field(gt=0, le=10)] = 1.0

    def __post_init__(self) -> None:
        if self.result == "mean" and self.method != "evolution_strategy":
            raise ValueError(f'result "mean" is the mean of a distribution, which method {self.method} has not; set result = "best"')
        twice = [gene for gene in self.genes if self.genes.count(gene) > 1]
        if twice:
            raise ValueError(f"gene {twice[0]!r} is given twice; name each once")

    def check(self, config: RunConfig) -> None:
        """Raise `ConfigError` unless codes are what is searched, their fitness can be measured, and the rounds come out even."""
        strategy, rounds = config.search.strategy, config.rounds
        if strategy["name"] != STRATEGY:
            raise ConfigError(
                f'search.strategy: {strategy["name"]}, but code_search searches class codes; set search.strategy = "{STRATEGY}"'
            )
        if not config.dataset.get("fitness"):
            raise ConfigError("dataset.fitness: none are set apart, and code_search measures codes on them; set it, for example to 500")
        for name, value in (("schedule", rounds.schedule), ("examples_per_round", rounds.examples_per_round)):
            if value:
                raise ConfigError(f"rounds.{name}: code_search says itself what each round does; leave it out")
        if (rounds.evaluate_every or 1) != 1:
            raise ConfigError("rounds.evaluate_every: code_search needs every round measured; leave it out")
        if config.learn.start == "continue":
            raise ConfigError('learn.start: candidates learn one beside the other, so nothing can continue; set it to "fresh" or "warm"')
        frequency = strategy["frequency"] or [0.0] * len(config.search.layers)
        if "frequency" in self.genes and not all(frequency[place] > 0 for place in _blocks(config) if place < len(frequency)):
            raise ConfigError("search.strategy.frequency: code_search changes it by factors; set it above 0 for every block")
        self._check_count(config)

    def _check_count(self, config: RunConfig) -> None:
        count, others = config.rounds.count, self._warm + 1
        generations, rest = divmod(count - others, self.population)
        if rest or generations < 1:
            fits = others + max(1, generations + (2 * rest >= self.population)) * self.population
            raise ConfigError(
                f"rounds.count: {count} rounds less {others} (warm start and last round) are not whole generations of {self.population} "
                f"codes; set it to {fits}"
            )

    def next(self, history: Sequence[RoundReport], config: RunConfig) -> RoundPlan | None:
        """Return the plan of the next round; see `RoundPolicy.next`."""
        number = len(history)
        if number >= config.rounds.count:
            return None
        if number == config.rounds.count - 1:
            return self._last(history, config)
        if number < self._warm:
            return RoundPlan(round=0, search=True, searched_round=None, warm_round=None, epochs=self.warm_epochs, fitness_alone=True)
        warm = 0 if self._warm else None
        strategy = self.code(history, number, config)
        return RoundPlan(
            round=number,
            search=True,
            searched_round=warm,
            warm_round=warm,
            epochs=self.epochs,
            changes={"strategy": strategy},
            drawn_as=self._warm,
            # Validation and test are for the last round: what is chosen by is measured on neither.
            fitness_alone=True,
        )

    def closing(self, history: Sequence[RoundReport], config: RunConfig) -> RoundPlan | None:
        """Return the last round, with the best code so far; see `closing_of`."""
        return None if self.next(history, config) is None else self._last(history, config)

    def reason(self, history: Sequence[RoundReport], config: RunConfig) -> str:
        """Return what came out; see `reason_of`."""
        best = self.best(history, config)
        value = history[best].metrics[self._metric]
        generations = (config.rounds.count - self._warm - 1) // self.population
        done = f"all {generations} generations of {self.population} codes are done"
        return f"{done}; the best is that of round {best}, {self._metric} {value:.4f}"

    def code(self, history: Sequence[RoundReport], number: int, config: RunConfig) -> dict[str, Any]:
        """Return what the candidate of round `number` changes of the strategy; all generations before its own are among `history`."""
        generation, place = divmod(number - self._warm, self.population)
        genome = self._genome(config)
        vectors = proposed(self.method, self._space(genome, config), self._fitness(history)[:generation])
        fields = genome.fields(vectors[place])
        if self.method == "random":
            # A new code, not the run's own one moved.
            fields = {**fields, "latent": None, "code_seed": seed_of(config.run.seed, "code search", generation, place) % 2**31}
        return {"name": STRATEGY, **fields}

    def best(self, history: Sequence[RoundReport], config: RunConfig) -> int:
        """Return the round of the fittest candidate, of equal ones the earliest."""
        candidates = range(self._warm, min(len(history), config.rounds.count - 1))
        return max(candidates, key=lambda number: self.fitness_of(history[number]))

    def fitness_of(self, report: RoundReport) -> float:
        """Return a candidate's fitness, higher being better."""
        value = report.metrics[self._metric]
        return value if self.fitness == "accuracy" else -value

    def _last(self, history: Sequence[RoundReport], config: RunConfig) -> RoundPlan:
        warm = 0 if self._warm and history else None
        changes: dict[str, Any] = {}
        if len(history) > self._warm:
            changes = {"strategy": self._result(history, config)}
        return RoundPlan(
            round=len(history),
            search=True,
            searched_round=warm,
            warm_round=warm if config.learn.start == "warm" else None,
            epochs=config.learn.epochs,
            changes=changes,
        )

    def _result(self, history: Sequence[RoundReport], config: RunConfig) -> dict[str, Any]:
        if self.result == "best":
            return self.code(history, self.best(history, config), config)
        genome = self._genome(config)
        return {"name": STRATEGY, **genome.fields(distribution_mean(self._space(genome, config), self._fitness(history)))}

    def _fitness(self, history: Sequence[RoundReport]) -> list[np.ndarray]:
        """Return the fitness (P,) of every whole generation."""
        values = [self.fitness_of(report) for report in history[self._warm :]]
        whole = len(values) // self.population
        return [np.array(values[number * self.population : (number + 1) * self.population]) for number in range(whole)]

    def _genome(self, config: RunConfig) -> Genome:
        strategy = config.search.strategy
        return Genome(
            genes=self.genes,
            strategy=strategy,
            blocks=_blocks(config),
            layers=len(config.search.layers),
            classes=self.classes,
            latent=self.latent,
            per_block=self.per_block,
        )

    def _space(self, genome: Genome, config: RunConfig) -> Space:
        return Space(groups=genome.groups(), population=self.population, step=self.step, seed=config.run.seed)

    @property
    def _warm(self) -> int:
        """Rounds of warm start."""
        return 1 if self.warm_epochs else 0

    @property
    def _metric(self) -> str:
        return f"fitness/{self.fitness}"


def _blocks(config: RunConfig) -> list[int]:
    return [position for position, layer in enumerate(config.search.layers) if layer != LOGITS]
