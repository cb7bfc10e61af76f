"""Targets remade of what was found, tile by tile: mixed with the network's own representations, or with class codes.

Shapes: W tiles of a group; T examples of a tile; R results; X a representation's own shape; G, M groups of channels and what is in each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from repsearch.networks.base import SearchableNetwork
from searcher.mixing import Mix
from searcher.starting import search_form
from searcher.strategies.base import SearchLayer
from searcher.strategies.class_code import ClassCode


def mixed_targets(mix: Mix, network: SearchableNetwork, layer: int, own_WTX: Tensor, found_WTRX: Tensor) -> Tensor:
    """Return what was found at `layer` mixed with the own representations, in the form of targets."""
    mixed = zip(own_WTX, found_WTRX, strict=True)
    return torch.stack(
        [search_form(network, layer, mix.target(own_TX, found_TRX).flatten(0, 1)).view_as(found_TRX) for own_TX, found_TRX in mixed]
    )


def coded_targets(code: ClassCode, layer: SearchLayer, labels_WT: Tensor, keys_WT: Tensor, found_WTRX: Tensor) -> Tensor:
    """Return what was found mixed with the codes of the examples' classes; the keys choose among several codes of a class."""
    R = found_WTRX.shape[2]
    targets = []
    for labels_T, keys_T, found_TRX in zip(labels_WT, keys_WT, found_WTRX, strict=True):
        found_BGM = found_TRX.reshape(-1, 1, *layer.groups)
        labels_B, keys_B = (values_T.repeat_interleave(R) for values_T in (labels_T, keys_T))
        state = code.init(found_BGM, layer=layer, labels_B=labels_B, keys_B=keys_B)
        targets.append(state.target_B1GM.reshape(found_TRX.shape))
    return torch.stack(targets)
