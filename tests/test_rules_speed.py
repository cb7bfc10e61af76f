"""The benchmark of learning rules: what its rows say, without the times of a machine that does other work."""

from __future__ import annotations

import torch

from benchmarks.rules_speed import ROWS, UPDATES, run
from repsearch.families import RULES


def test_rows_say_what_the_passes_are_and_count_products() -> None:
    threads = torch.get_num_threads()
    rows = {row["name"]: row for row in run([16, 16], 200, 1, [*ROWS, *UPDATES])}
    assert torch.get_num_threads() == threads
    assert {table["name"] for table, _ in ROWS.values()} == set(RULES.names())
    for name, row in rows.items():
        assert row["over"] > 0 and row["products"] > 0 and row["of"]
        assert row["per_pass"] is None if name in UPDATES else row["per_pass"] == row["over"] / row["passes"]
    passes = {name: rows[name]["passes"] for name in ROWS}
    assert passes["node_perturbation np"] == passes["forward_gradient"] == 2 and passes["node_perturbation np, K = 8"] == 9
    assert passes["node_perturbation inp"] == 4 and passes["backprop"] == 3
    products = {name: row["products"] for name, row in rows.items()}
    assert products["node_perturbation np, K = 8"] < 6 * products["node_perturbation np"]
    # No product beside those of the passes but the weight's gradient, of a network whose first layer is nearly all of it.
    for name in ("node_perturbation np", "node_perturbation anp", "forward_gradient", "forward_gradient, activities"):
        assert products[name] < 1.2 * passes[name], name
    assert products["node_perturbation np, decorrelated by a tenth"] < 0.5 * products["node_perturbation np, decorrelated"]
