"""Whether diverse targets make diverse networks: K networks from K independent searches, beside K from labels; accuracy of each and of all.

The networks of an arm learn for the same epochs from the same images:

    targets        each from its own search, all with the same initial parameters and batches: the targets alone differ
    both           each from its own search, with a seed of learning of its own
    seeds          all from the first search, each with a seed of its own
    cross_entropy  from labels, each with a seed of its own

Shapes: K networks; N images; C classes; D values of a representation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import Field

from orchestrator.analysis.agreement import equal_errors, equal_predictions, kernel_alignment, pairs_mean
from orchestrator.analysis.calibration import calibration, cross_entropy, softmax
from orchestrator.analysis.collision import centred
from orchestrator.analysis.diversity import cosines, effective_number
from orchestrator.studies.base import Base, Findings, Learning, LearningResult, Results, Setting
from orchestrator.studies.figures import COLOURS, MARKERS, grid, label_once
from repsearch.errors import ConfigError

if TYPE_CHECKING:
    from repsearch.datasets.base import Data

Row = dict[str, Any]
Floats = NDArray[np.floating]
Arm = Literal["targets", "both", "seeds", "cross_entropy"]
SEARCHED, SEEDED = ("targets", "both"), ("both", "seeds", "cross_entropy")
"""Arms whose networks differ in targets, and in seeds."""
_TARGETS = "searched targets"


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """K networks per arm, compared in what they predict and represent, and averaged.

    members: K, independent searches and networks per arm; `search.searches_per_example` is set to it.
    arms: what the networks differ in.
    examples: images that representations are compared on, the first ones of the training and of the test split.
    """

    members: Annotated[int, Field(ge=2)] = 5
    arms: Annotated[list[Arm], Field(min_length=1)] = field(default_factory=lambda: ["targets", "cross_entropy"])
    examples: Annotated[int, Field(ge=1)] = 500

    def settings(self, base: Base) -> list[Setting]:
        """Return the one search of all K results per image."""
        if len(set(self.arms)) < len(self.arms):
            raise ConfigError(f"study.arms: {', '.join(self.arms)}: an arm is given twice; name each once")
        strategy = base.config.search.strategy
        return [Setting(name=strategy["name"], strategy=strategy, searches=self.members)]

    def learnings(self, base: Base) -> list[Learning]:
        """Return the K networks of every arm."""
        seed = base.config.learn_seed()
        return [Learning(arm=arm, number=number, learn=_fields(arm, number, seed)) for arm in self.arms for number in range(self.members)]

    def analyse(self, results: Results) -> Findings:
        """Return a row per arm, one per network, one per arm, layer and split for representations; and the figure of all."""
        from repsearch.datasets import load_data

        config = results.base.config
        data = load_data(config.dataset, seed=config.run.seed)
        arms = {arm: [result for result in results.learned if result.learning.arm == arm] for arm in self.arms}
        probabilities = {arm: _probabilities(results, networks, data) for arm, networks in arms.items()}
        labels_N = np.asarray(data.test.labels.numpy())
        members = [row for arm, networks in arms.items() for row in member_rows(networks, probabilities[arm], labels_N)]
        ensembles = [arm_row(results, arm, networks, probabilities[arm], labels_N) for arm, networks in arms.items()]
        compared = [row for arm, networks in arms.items() for row in self._representations(results, arm, networks, data)]
        compared += self._target_rows(results)
        title = f"{results.name}, {self.members} networks each, {len(labels_N)} test images"
        tables = {"ensemble": ensembles, "ensemble-members": members, "ensemble-representations": compared}
        return Findings(figures={"ensemble": draw(ensembles, members, compared, title)}, tables=tables)

    def _representations(self, results: Results, arm: str, networks: Sequence[LearningResult], data: Data) -> Iterator[Row]:
        from orchestrator.analysing.outputs import network_from, representations

        store = results.settings[0].store
        for split, images in (("train", data.train.images), ("test", data.test.images)):
            built = (network_from(result.config, store, result.record.network, data) for result in networks)
            found = [representations(network, images[: self.examples]) for network in built]
            for layer in found[0]:
                yield representation_row(arm, split, layer, [values[layer] for values in found])

    def _target_rows(self, results: Results) -> Iterator[Row]:
        for layer in results.base.layers:
            values_NKX = results.settings[0].targets(layer)[: self.examples]
            targets_KND = [centred(values_NKX[:, k]) for k in range(self.members)]
            yield representation_row(_TARGETS, "train", layer, targets_KND)


def _fields(arm: str, number: int, seed: int) -> dict[str, Any]:
    """Return the fields of `learn` for a network of an arm."""
    what: dict[str, Any] = {"objective": {"name": "cross_entropy"}} if arm == "cross_entropy" else {"targets": number * (arm in SEARCHED)}
    # Seeds wrap around below the greatest that the configuration takes.
    return {**what, "seed": (seed + number * (arm in SEEDED)) % 2**31}


def member_rows(networks: Sequence[LearningResult], probabilities_KNC: Floats, labels_N: NDArray[np.int64]) -> Iterator[Row]:
    """Yield the row of each network: what it learned from, its scores, and what learning it took."""
    for result, probabilities_NC in zip(networks, probabilities_KNC, strict=True):
        attributes = result.record.attributes
        yield {
            "arm": result.learning.arm,
            "network": result.learning.number,
            "result": result.learning.learn.get("targets", ""),
            "seed": result.learning.learn["seed"],
            "validation_accuracy": float(attributes["validation_accuracy"]),
            "test_accuracy": _accuracy(probabilities_NC, labels_N),
            "test_cross_entropy": cross_entropy(probabilities_NC, labels_N),
            "test_ece": calibration(probabilities_NC, labels_N).ece,
            "examples_learned": int(attributes["examples"]),
            "seconds": float(attributes["seconds"]),
        }


def arm_row(results: Results, arm: str, networks: Sequence[LearningResult], probabilities_KNC: Floats, labels_N: NDArray[np.int64]) -> Row:
    """Return the row of an arm, all on test images.

    accuracy, ece: mean over its networks; accuracy_sd: standard deviation over them. ensemble_*: of the mean of their probabilities.
    disagreement: mean over pairs of the share of images to which two networks give different classes. equal_errors: mean over pairs,
    of the images that at least one gets wrong, of the share with the same wrong class. evaluations: candidates per image of all the
    searches that the arm's networks read; examples_learned: forward and backward, of all its networks.
    """
    predictions_KN = probabilities_KNC.argmax(axis=2)
    mean_NC = probabilities_KNC.mean(axis=0)
    accuracy_K = [_accuracy(probabilities_NC, labels_N) for probabilities_NC in probabilities_KNC]
    record = results.settings[0].record
    searches = len({result.learning.learn["targets"] for result in networks if "targets" in result.learning.learn})
    evaluations = record.evaluations / record.examples
    return {
        "arm": arm,
        "networks": len(networks),
        "images": len(labels_N),
        "accuracy": float(np.mean(accuracy_K)),
        "accuracy_sd": float(np.std(accuracy_K, ddof=1)),
        "ensemble_accuracy": _accuracy(mean_NC, labels_N),
        "ece": float(np.mean([calibration(probabilities_NC, labels_N).ece for probabilities_NC in probabilities_KNC])),
        "ensemble_ece": calibration(mean_NC, labels_N).ece,
        "cross_entropy": float(np.mean([cross_entropy(probabilities_NC, labels_N) for probabilities_NC in probabilities_KNC])),
        "ensemble_cross_entropy": cross_entropy(mean_NC, labels_N),
        "disagreement": 1 - pairs_mean(equal_predictions(predictions_KN)),
        "equal_errors": pairs_mean(equal_errors(predictions_KN, labels_N)),
        "evaluations": evaluations * searches / results.settings[0].setting.searches,
        "examples_learned": sum(int(result.record.attributes["examples"]) for result in networks),
    }


def representation_row(arm: str, split: str, layer: str, values_KND: Sequence[Floats]) -> Row:
    """Return how many distinct representations K networks have of an image, 1 to K.

    n_eff: of the cosines between the K representations of an image, mean and standard deviation over images. n_eff_alignment: of the
    networks' linear CKA over all images, which does not see in which channels and at which scale a network represents them.
    """
    n_eff_N = effective_number(cosines(np.stack(values_KND, axis=1)))
    alignment = float(effective_number(kernel_alignment(values_KND)[None])[0])
    numbers = {"n_eff": float(np.nanmean(n_eff_N)), "n_eff_sd": float(np.nanstd(n_eff_N)), "n_eff_alignment": alignment}
    return {"arm": arm, "split": split, "layer": layer, "images": len(values_KND[0]), **numbers}


def draw(ensembles: Sequence[Row], members: Sequence[Row], compared: Sequence[Row], title: str) -> Figure:
    """Return accuracy and calibration of networks and ensembles, disagreement, and N_eff of representations by layer."""
    figure, [panels] = grid(1, 5, f"Networks from independent searches: {title}", height=3.2)
    arms = [row["arm"] for row in ensembles]
    _scores(panels[0], ensembles, members, "accuracy", "test accuracy (%)")
    _scores(panels[1], ensembles, members, "ece", "ECE (%)")
    for index, row in enumerate(ensembles):
        panels[2].bar(index, 100 * row["disagreement"], color=COLOURS[index])
    panels[2].set(title="disagreement of pairs", ylabel="test images (%)")
    panels[2].set_xticks(range(len(arms)), arms, fontsize="small", rotation=20)
    for axes, key, label in zip(panels[3:], ("n_eff", "n_eff_alignment"), ("cosines per image", "linear CKA"), strict=True):
        for index, arm in enumerate([*arms, _TARGETS]):
            curve = [row for row in compared if row["arm"] == arm and (row["split"] == "test" or arm == _TARGETS)]
            style: dict[str, Any] = {"color": "grey" if arm == _TARGETS else COLOURS[index], "marker": MARKERS[index]}
            line = "--" if arm == _TARGETS else "-"
            axes.plot([row["layer"] for row in curve], [row[key] for row in curve], line, label=arm, markersize=5, **style)
        axes.set(title=f"N_eff, {label}", ylabel="distinct representations")
        axes.set_ylim(bottom=1)
    label_once(figure, panels[3])
    return figure


def _scores(axes: Axes, ensembles: Sequence[Row], members: Sequence[Row], key: str, label: str) -> None:
    for index, row in enumerate(ensembles):
        values = [100 * member[f"test_{key}"] for member in members if member["arm"] == row["arm"]]
        axes.plot([index] * len(values), values, ".", color=COLOURS[index], alpha=0.6, label="networks" if index == 0 else None)
        axes.plot(index, 100 * row[f"ensemble_{key}"], "*", color=COLOURS[index], markersize=12, label="ensemble" if index == 0 else None)
    axes.set(title=f"{label.partition(' (')[0]}", ylabel=label, xlim=(-0.5, len(ensembles) - 0.5))
    axes.set_xticks(range(len(ensembles)), [row["arm"] for row in ensembles], fontsize="small", rotation=20)
    if key == "accuracy":
        axes.legend(fontsize="small", frameon=False)


def _probabilities(results: Results, networks: Sequence[LearningResult], data: Data) -> Floats:
    """Return each network's probabilities of the test images (K, N, C)."""
    from orchestrator.analysing.outputs import logits, network_from

    store = results.settings[0].store
    built = (network_from(result.config, store, result.record.network, data) for result in networks)
    return np.stack([softmax(logits(network, data.test.images)) for network in built])


def _accuracy(probabilities_NC: Floats, labels_N: NDArray[np.int64]) -> float:
    return float((probabilities_NC.argmax(axis=1) == labels_N).mean())
