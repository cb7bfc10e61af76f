"""Searchable networks: a stem, blocks whose outputs are the representations, and a head; runnable from any block.

`build_network` makes one from a configuration table; `check_same_representations` refuses a pair whose block outputs differ in shape;
`to_arrays` and `load_arrays` carry parameters and buffers to and from the store. Members: see `repsearch.families.NETWORKS`.
"""

from repsearch.networks.base import (
    BlockOutput,
    NetworkSpec,
    SearchableNetwork,
    depends_on_batch,
    layer_name,
    layer_number,
    outputs_of_blocks,
)
from repsearch.networks.building import build_network, calibrate, check_same_representations, network_digest
from repsearch.networks.parameters import load_arrays, to_arrays

__all__ = [
    "BlockOutput",
    "NetworkSpec",
    "SearchableNetwork",
    "build_network",
    "calibrate",
    "check_same_representations",
    "depends_on_batch",
    "layer_name",
    "layer_number",
    "load_arrays",
    "network_digest",
    "outputs_of_blocks",
    "to_arrays",
]
