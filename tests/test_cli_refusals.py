"""Bad input through the command line: exit code, message, and nothing started or written."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from orchestrator import cli
from orchestrator.runs import RunLock
from tests.orchestrator_runs import write_config
from tests.serving_processes import daemon

CASES: dict[str, tuple[list[str], int, str]] = {
    "unknown key": (["search.strategy.populaton=3"], 2, "search.strategy.populaton: unknown key 'populaton'; did you mean 'population'"),
    "unknown member": (["dataset.name=digit"], 2, "did you mean 'digits'"),
    "out of range": (["rounds.count=0"], 2, "rounds.count"),
    "malformed override": (["rounds.count"], 2, "expected a.b=v"),
    "layer that is not there": (["search.layers=[0, 7]"], 2, "search.layers: layer 7 is not there: the network has blocks 0 to 1"),
    "layers out of order": (['search.layers=[1, 0, "logits"]'], 2, "not in increasing order"),
    "schedule of another length": (["search.layers=[0, 1]"], 2, "search.strategy.generations: 3 values"),
    "small population": (["search.strategy.population=2"], 2, "population 2 is smaller than parents"),
    "supervised block not searched": (
        ['learn.objective={name="regression", layers=[5]}'],
        2,
        "learn.objective.layers: block 5 is not searched",
    ),
    "network too deep": (["network.blocks=9"], 2, "network.blocks: 9 blocks do not fit 8x8 images"),
    "another searched shape": (["search.network.width=16"], 2, "search.network"),
    "batch larger than the data": (["learn.batch_size=201"], 2, "learn.batch_size: 201 is more than the 200 training examples"),
    "isolated block without a target": (
        ['learn.objective={name="regression", layers=[1], isolate=true}'],
        2,
        "learn.objective.isolate: block 0 has no target to learn from",
    ),
    "searched network of batch statistics": (["network.batchnorm=batch"], 2, 'set search.network.batchnorm = "running"'),
    "closed loop over batch statistics": (
        ["network.batchnorm=batch", "search.network.batchnorm=running"],
        2,
        "network: the learned network, which round 1 searches",
    ),
    "match that the network cannot serve": (
        [
            'learn.objective={name="regression", match="last_activation_dropped"}',
            'network={name="torchvision", stages=["layer1", "layer2"]}',
        ],
        2,
        "learn.objective.match: the network's blocks do not give",
    ),
