"""Which training examples a round covers: a window of neighbouring examples, the windows of a pass in an order from the seed.

Functions of (number of examples, window size, run seed, round) alone, so that every process comes to the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from repsearch.config import RunConfig
from repsearch.seeding import seed_of


@dataclass(frozen=True)
class Window:
    """The training examples [first, first + count)."""

    first: int
    count: int


@dataclass(frozen=True)
class Windows:
    """`examples` training examples in windows of `size`; the last of them may be smaller. Each pass has every window once."""

    examples: int
    size: int
    seed: int

    def __len__(self) -> int:
        """Windows in a pass."""
        return -(-self.examples // self.size)

    def of(self, round: int) -> Window:
        """Return the window of `round`."""
        number, place = divmod(round, len(self))
        first = _order(self.seed, number, len(self))[place] * self.size
        return Window(first, min(self.size, self.examples - first))

    def before(self, round: int) -> int | None:
        """Return the round that had the window of `round` in the pass before; None in the first pass."""
        number, place = divmod(round, len(self))
        if number == 0:
            return None
        window = _order(self.seed, number, len(self))[place]
        return (number - 1) * len(self) + _order(self.seed, number - 1, len(self)).index(window)

    def steps(self, rounds: int, batch_size: int, epochs: int) -> int:
        """Return the optimiser steps of the first `rounds` rounds, of `epochs` passes over each window."""
        passes, rest = divmod(rounds, len(self))
        in_pass = sum(self._steps_of(number, batch_size) for number in range(len(self))) if passes else 0
        begun = sum(self._steps_of(number, batch_size) for number in _order(self.seed, passes, len(self))[:rest])
        return epochs * (passes * in_pass + begun)

    def _steps_of(self, number: int, batch_size: int) -> int:
        # As `learner.schedule.steps_per_epoch`: the last, smaller batch counts only if it is the only one.
        return max(1, min(self.size, self.examples - number * self.size) // batch_size)


def windows_of(config: RunConfig, examples: int) -> Windows:
    """Return the windows of a run with `examples` training examples; without `rounds.examples_per_round` one window, all of them."""
    return Windows(examples, min(examples, config.rounds.examples_per_round or examples), config.run.seed)


def evaluated(config: RunConfig, examples: int, round: int) -> bool:
    """Return whether the network of `round` is measured on validation and test: every so many rounds, and after the last one."""
    every = config.rounds.evaluate_every or len(windows_of(config, examples))
    return (round + 1) % every == 0 or round + 1 == config.rounds.count


@lru_cache(maxsize=8)
def _order(seed: int, number: int, windows: int) -> list[int]:
    """Return the windows of pass `number` in order: by a hash of each, which needs no torch."""
    return sorted(range(windows), key=lambda window: seed_of(seed, "windows", number, window))
