"""The sections of a run's configuration. Field descriptions become `docs/config.md`."""

from __future__ import annotations

import itertools
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

LOGITS: Literal["logits"] = "logits"
"""Name of the last search layer: the output of the head."""

PluginTable = dict[str, Any]
"""A plug-in's name and fields, as in TOML; resolved by `repsearch.families.Family.build`."""


class Section(BaseModel):
    """A table of the configuration: immutable, unknown keys refused, every number finite, no `true` or `"3"` for a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True, use_attribute_docstrings=True)


class RunSection(Section):
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of everything random in the run: split, initial parameters, search, batch order."""
    root: str = "runs"
    """Folder that holds the runs, relative to the working directory; a run is a folder in it."""
    baseline: bool = False
    """Follow the run by a cross-entropy run of the same network shape, epochs and optimiser."""


class SearchConfig(Section):
    strategy: PluginTable = Field(default_factory=lambda: {"name": "evolution"})
    """Search strategy (family `strategies`)."""
    layers: list[Annotated[int, Field(ge=0)] | Literal["logits"]] = Field(default=[0, 1, 2, "logits"], min_length=1)
    """Search layers, evolved in this order: block numbers from 0, and `"logits"`."""
    start: Literal["fresh", "network"] = "fresh"
    """Initial population on a learned network: around noisy inputs, or around the network's own representations.
    An untrained network is always searched from noisy inputs."""
    below: Literal["found", "own"] = "found"
    """What a search layer stands on: what was found at the search layer before, or the network's own representations, so that layers are
    searched independently of one another."""
    step: float | None = Field(default=None, gt=0, le=10)
    """Targets mixed with the network's own representation h: h + step * (found - h), normalised. None: what was found."""
    nudge: float | None = Field(default=None, gt=0, le=100)
    """Targets that lie a fixed way from the network's own representation h, whatever the fitness: h + nudge * rms(h) * d, normalised,
    where d is found - h brought to a root mean square of 1. None: what was found."""
    relative: bool = False
    """What is stored for a block is the way from the network's own representation to the target, and the learner
    adds it to its own output, without gradient. A target then stays as far ahead where the learner is rounds ahead of the network
    searched, or normalises by a batch's statistics. Logits stay targets."""
    code: PluginTable = Field(default_factory=dict)
    """Class codes in the targets of blocks, beside what was found: fields of strategy `class_code`, of which `mix`, the share of the code,
    has to be below 1, and what was found is in the place of the own representation. None given: no codes."""
    archive: int = Field(default=0, ge=0)
    """Fittest candidates of each image's last population that are stored, per search layer, and are among the image's starting candidates
    when a learned network is searched next; there they are evaluated anew. Strategy `evolution`, at most its parents. 0: none."""
    network: PluginTable = Field(default_factory=dict)
    """Fields in which the searched, untrained network of round 0 differs from `[network]`, such as `convolutions`."""
    input_noise: float = Field(default=0.1, ge=0)
    """Standard deviation of the noise on the inputs of the initial population, in standard deviations of the channel."""
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = 16
    """Examples computed together (a micro-batch); `"auto"`: as many as `memory_mb` leaves room for. Results depend on the number in the
    last bits, on the shard size never."""
    memory_mb: int = Field(default=2048, ge=1)
    """Memory that a search may take on a searcher, in MB, beside data set and results. What it needs is computed from configuration and
    shapes; a search that needs more is refused."""
    searches_per_example: int = Field(default=1, ge=1)
    """Independent results per training image; `learn.targets` says which of them the learner reads."""
    calibration_examples: int = Field(default=1000, ge=2)
    """Training images on which the untrained network's BatchNorm statistics are calibrated, once."""
    statistics: Literal["learned", "round"] = "learned"
    """BatchNorm statistics with which a learned network is searched: the running ones that learning left, or those of the round's own
    images, computed anew (of at most `calibration_examples` of them, all at once, which `memory_mb` does not count). Running ones lag
    behind a network that learns fast."""
    compiled: bool = True
    """Search by compiled loops where there are some, on a CPU: `evolution`, whole where the part of the network above mixes channels in the
    head only; `evolution` and `evolution_strategy`, between forward passes, on any other network while no image may stop early.
    Other searches, and all of them with `false`, are done by tensor operations; the two differ in the last bits."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward pass above a searched layer (`bfloat16`: torch's autocast); candidates, targets and fitness stay float32.
    Tested on CPU; bfloat16 has not been run on a GPU."""
    kernels: bool = False
    """Make evolution's children by fused Triton kernels, on a GPU. They have never run on a real one, so they are off by default."""

    @field_validator("layers")
    @classmethod
    def _each_once(cls, layers: list[int | str]) -> list[int | str]:
        twice = [layer for layer in layers if layers.count(layer) > 1]
        if twice:
            raise ValueError(f"layer {twice[0]!r} is given twice; name each search layer once")
        return layers

    @property
    def mixes(self) -> bool:
        """Whether targets refer to the network's own representation."""
        return self.step is not None or self.nudge is not None or self.relative

    @property
    def remade(self) -> bool:
        """Whether targets are others than what was found."""
        return self.mixes or bool(self.code)

    @model_validator(mode="after")
    def _one_mix(self) -> Self:
        if self.step is not None and self.nudge is not None:
            raise ValueError(f"step {self.step} and nudge {self.nudge} are two ways to mix a target; leave one of them out")
        return self


class LearnConfig(Section):
    objective: PluginTable = Field(default_factory=lambda: {"name": "regression"})
    """Learning objective (family `objectives`)."""
    rule: PluginTable = Field(default_factory=lambda: {"name": "backprop"})
    """Learning rule (family `rules`): how gradients are estimated."""
    optimiser: PluginTable = Field(default_factory=lambda: {"name": "adamw"})
    """Optimiser (family `optimisers`)."""
    targets: Literal["best", "random"] | Annotated[int, Field(ge=0)] = "best"
    """Where images have several searched results: the fittest one (mean over the search layers), one drawn anew in every epoch, or the
    one of this number, from 0."""
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    """Seed of initial parameters, batch order and augmentation, where it is not to be `run.seed`."""
    start: Literal["fresh", "warm", "continue"] = "fresh"
    """Each round learns from initial parameters (`fresh`), goes on from the network of the round before (`warm`), or goes on with
    everything (`continue`): network, optimiser and a learning-rate schedule that spans all rounds."""
    epochs: int = Field(default=12, ge=1)
    """Passes over the training set per round."""
    batch_size: int = Field(default=125, ge=2)
    """Examples per optimiser step; the last, smaller batch of an epoch is dropped unless it is the only one."""
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    """Learning rate over a round: linear rise to the optimiser's `lr`, then cosine fall to nearly zero; the fall alone; or constant."""
    warmup: float = Field(default=0.25, gt=0, lt=1)
    """Share of a round's steps in which the learning rate rises (`one_cycle`)."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Greatest norm of the gradient of all parameters together; a longer one is shortened to it. None: as it is."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after this many epochs in a row without a better validation accuracy. None: learn all epochs. The schedule stays as planned."""
    keep: Literal["last", "best"] = "last"
    """Network of a round: that of the last epoch, or of the best validation accuracy (of equal ones the earliest)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward and backward pass (`bfloat16`: torch's autocast); parameters, loss and evaluation stay float32.
    Tested on CPU; bfloat16 has not been run on a GPU."""
    compile: bool = False
    """Compile the training step's forward and backward pass by `torch.compile`, which takes a minute at the start and needs a C++ compiler
    on CPU. Tested on CPU; it has not been run on a GPU."""
    memory_mb: float | None = Field(default=None, gt=0)
    """Most MB of targets in memory. Where a round's targets take more, they are read from the store as they are needed, in large pieces,
    ahead of time: each piece holds neighbouring examples, and pieces are shuffled together as many as fit. Batches then differ from those
    without a limit, but the seed fixes them all the same. None: all targets in memory."""
    fixed_batches: bool = False
    """Keep the composition of the batches from epoch to epoch and shuffle only their order (of streamed targets, that within a buffer)."""
    flip: bool = False
    """Augmentation: mirror images left to right, with probability 1/2."""
    pad_crop: int = Field(default=0, ge=0)
    """Augmentation: shift images by up to this many pixels (reflection pad, random crop)."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints kept while a round learns; they are removed only after a newer one was read back whole."""
    checkpoint_seconds: float = Field(default=300.0, gt=0)
    """Seconds after which the state is kept within an epoch too; it is kept after every epoch in any case."""
    snapshots: int = Field(default=0, ge=0)
    """Keep the network of every so many epochs, and of the last one, for `orchestrator analyse`; 0: none. Parameters alone are kept."""


class ScheduleEntry(Section):
    """Settings of the rounds from one on, up to the next entry's: what they change of the run's configuration."""

    from_round: int = Field(ge=0)
    epochs: int | None = Field(default=None, ge=1)
    search: PluginTable = Field(default_factory=dict)


class KeepConfig(Section):
    rounds: int | None = Field(default=None, ge=1)


class RoundsConfig(Section):
    policy: PluginTable = Field(default_factory=lambda: {"name": "closed_loop"})
    """Round policy (family `policies`)."""
    count: int = Field(default=3, ge=1)
    """Number of rounds, at most."""
    examples_per_round: int | None = Field(default=None, ge=2)
    """Training images of a round: a window of neighbouring ones, of which the last of a pass may be smaller. Each pass over the training
    set takes every window once, in an order from the seed; `learn.epochs` are passes over the window. None: all of them, every round."""
    evaluate_every: int | None = Field(default=None, ge=1)
    """Rounds from one measurement on validation and test to the next; the last round is always measured. None: once per pass over the
    training set."""
    schedule: list[ScheduleEntry] = []
    """Other settings from some round on: `{from_round = 3, epochs = 4, search = {layers = [2], strategy = {population = 48}}}`. An entry
    stands up to the next one's round, and changes what it names of `learn.epochs` and of `[search]`."""
    max_evaluations: int | None = Field(default=None, ge=1)
    """End after the round in which the candidate evaluations per example, of all rounds together, reach this number."""
    max_seconds: float | None = Field(default=None, gt=0)
    """End after the round in which the wall time of all rounds together reaches this many seconds."""
    plateau: int | None = Field(default=None, ge=1)
    """After this many rounds in a row without a better validation accuracy: `at_plateau`."""
    at_plateau: Literal["stop", "widen"] = "stop"
    """End, or search the following rounds wider; the widened search's rounds are counted anew."""
    widen_by: float = Field(default=2.0, gt=1)
    """Factor on the numbers of candidates at each widening; see docs/policies.md for the fields of each strategy."""
    widen_times: int = Field(default=2, ge=1)
    """Widenings; the plateau after the last one ends the run."""
    keep: KeepConfig = KeepConfig()
    """What stays of rounds that are done: `{rounds = N}` removes the targets and networks of all but the last N rounds while the run goes
    on, and of what later rounds need; figures stay. Without it everything is kept."""

    @field_validator("schedule")
    @classmethod
    def _in_order(cls, schedule: list[ScheduleEntry]) -> list[ScheduleEntry]:
        for before, after in itertools.pairwise(schedule):
            if after.from_round <= before.from_round:
                raise ValueError(f"round {after.from_round} follows round {before.from_round}; list rounds in increasing order, each once")
        return schedule


class SearcherConfig(Section):
    addresses: list[str] = []
    """`host:port` of running searcher daemons; empty: start local ones."""
    count: int = Field(default=1, ge=1)
    """Local searcher daemons to start."""
    device: str = "cpu"
    """Torch device of local searcher daemons."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of each local searcher daemon."""
    shard_examples: Annotated[int, Field(ge=1)] | Literal["auto"] = 512
    """Examples per shard: the unit of work, of writing and of commit; "auto": as many as take about 30 s."""
    stall_seconds: float = Field(default=600.0, gt=0)
    """Seconds without progress after which a job is cancelled and done again; it is reported before."""
    wait_seconds: float = Field(default=300.0, ge=0)
    """Seconds to wait for a searcher to come back when none is left, before the run ends, to be resumed."""
    hedge: bool = True
    """Give the shard that is furthest behind to a second searcher when others are idle; the first result counts."""


class LearnerConfig(Section):
    address: str = ""
    """`host:port` of a running learner daemon; empty: start a local one."""
    device: str = "cpu"
    """Torch device of the local learner daemon."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of the local learner daemon."""
    stall_seconds: float = Field(default=1800.0, gt=0)
    """Seconds without progress after which a job is cancelled and gone on with; it is reported before."""
    wait_seconds: float = Field(default=300.0, ge=0)
    """Seconds to wait for the learner to come back, before the run ends, to be resumed."""


class TlsConfig(Section):
    ca: str = ""
    """Certificate (PEM) of the authority that signed the daemons' certificates; empty: plaintext. `orchestrator certs` makes one."""
    cert: str = ""
    """Our own certificate, for daemons that were started with `--tls-ca`."""
    key: str = ""
    """Its private key, which only its owner may read."""
    token_file: str = ""
    """File with the token, for daemons that were started with `--token-file`; only its owner may read it."""
    loopback: bool = False
    """Call daemons at loopback addresses by TLS too; they need none."""


class StoreConfig(Section):
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """Precision of stored targets. Parameters and checkpoints are always stored exactly."""
    chunk_mb: float = Field(default=4.0, gt=0, le=64)
    """Size of a chunk in MB."""
    root: str = ""
    """Where runs keep what is searched and learned: `s3://bucket/prefix` (extra `s3`, see remote-stores.md); empty: in `run.root`."""

    @field_validator("root")
    @classmethod
    def _in_an_object_store(cls, root: str) -> str:
        if root and not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^/\\\s]+)*", root):
            raise ValueError(f"{root!r} is not s3://bucket/prefix, without '/' at its end; a folder is named by run.root")
        if "/../" in f"{root}/" or "/./" in f"{root}/":
            raise ValueError(f"{root!r} is not in normal form; leave out '.' and '..'")
        return root


class TrackingConfig(Section):
    enabled: bool = True
    """Log to MLflow; the journal in the run's folder is written in any case."""
    uri: str = ""
    """MLflow tracking URI; empty: `sqlite:///<run.root>/mlflow.db`, as an absolute path."""
    experiment: str = "repsearch"
    """MLflow experiment name."""


class RunConfig(Section):
    """Configuration of one run."""

    run: RunSection = RunSection()
    dataset: PluginTable = Field(default_factory=lambda: {"name": "digits"})
    """Dataset (family `datasets`)."""
    network: PluginTable = Field(default_factory=lambda: {"name": "convnet"})
    """Learned network (family `networks`)."""
    search: SearchConfig = SearchConfig()
    learn: LearnConfig = LearnConfig()
    rounds: RoundsConfig = RoundsConfig()
    searcher: SearcherConfig = SearcherConfig()
    learner: LearnerConfig = LearnerConfig()
    tls: TlsConfig = TlsConfig()
    """How daemons at `searcher.addresses` and `learner.address` are called, where those are no loopback addresses."""
    store: StoreConfig = StoreConfig()
    tracking: TrackingConfig = TrackingConfig()

    def search_network(self) -> PluginTable:
        """Table of the untrained network that round 0 searches: `[network]` with the fields of `[search.network]`."""
        return {**self.network, **self.search.network}

    def learn_seed(self) -> int:
        """Seed of what is random in learning: `learn.seed`, or the run's."""
        return self.run.seed if self.learn.seed is None else self.learn.seed
