"""Evolution's children by one fused kernel: arguments checked and laid out here, arithmetic in `searcher.kernels.fused`.

Shapes: B examples; Q members of an example's pool; P children; G x M a representation (`searcher.strategies.base`); R rows of a table;
T groups of a tile, the part of a candidate that is held in registers at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from searcher.kernels.machine import available
from searcher.kernels.smoothing import smoothing_matrix

NORMALISE_EPS = 1e-5
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_TILE_VALUES = 8192  # up to here, padded, a candidate stays in registers (compiled for sm_90, 16384 spills); a larger one is computed twice
_MOST_VALUES = 65536  # of one group: the deviation of a group needs all of it at once
_LEAST_SIDE = 16  # of a matrix product
_VALUES_PER_WARP = 512


@dataclass(frozen=True)
class Table:
    """Mutations are G consecutive rows of `rows_RM`, smoothed beforehand: the same as `NoiseTable` gives for the same draws."""

    rows_RM: Tensor


@dataclass(frozen=True)
class Philox:
    """Mutations are drawn in the kernel by Philox 4x32-10, then smoothed there by `passes`; `rescale`: to unit variance afterwards.

    The key of the cipher is the child's third draw (64 bits), its counter the number of the element: a mutation depends on the example's
    key, the child's counter and the shape of the layer alone.
    """

    passes: int = 0
    rescale: bool = True


def children(
    pool_BQGM: Tensor,
    one_BP: Tensor | None = None,
    two_BP: Tensor | None = None,
    *,
    keys_B: Tensor,
    counter: int,
    count: int,
    strength: float,
    mutation: Table | Philox,
    map_shape: tuple[int, int],
    candidate_passes: int = 0,
    recentre: bool = False,
    out_BPGM: Tensor | None = None,
) -> Tensor:
    """Return children (B, count, G, M) of `pool_BQGM`, in its precision (float32, bfloat16 or float16); arithmetic is float32.

    one_BP, two_BP: the two members of each child, int64 in 0..Q-1 (not checked: that would wait for the device). Without them they are
    the draws `counter + 3 p` and `counter + 3 p + 1` of the example's key, as `repsearch.seeding.draw` gives them.
    keys_B: int64. counter: number of the first child's first draw; draw `counter + 3 p + 2` is the mutation's.
    strength: standard deviation of the mutation, in the mean of the members' deviations of the group.
    map_shape: (H, W) with H * W = M; (1, M) for a vector or logits.
    candidate_passes: smoothing of the whole child, before normalisation.
    recentre: subtract the mean instead of normalising (logits; one group only).
    out_BPGM: written and returned instead of a new tensor; a part of a larger one along P will do.
    Raises ValueError for arguments that do not fit, or a device that the kernels do not run on.
    """
    B, Q, G, M = pool_BQGM.shape
    passes = mutation.passes if isinstance(mutation, Philox) else 0
    _check(pool_BQGM, mutation, map_shape, passes, candidate_passes, recentre)
    out_BPGM = pool_BQGM.new_empty(B, count, G, M) if out_BPGM is None else out_BPGM
    if out_BPGM.shape != (B, count, G, M) or out_BPGM.dtype != pool_BQGM.dtype or out_BPGM.stride()[1:] != (G * M, M, 1):
        raise ValueError(
            f"out_BPGM of {tuple(out_BPGM.shape)}, {out_BPGM.dtype}; give {(B, count, G, M)}, contiguous from P on, of the pool's"
        )
    if out_BPGM.numel() == 0:
        return out_BPGM
    layout = Layout.of(G, map_shape, smoothed=passes + candidate_passes > 0)
    rescale = isinstance(mutation, Philox) and mutation.rescale and candidate_passes == 0
    down, across = (
        smoothing_matrix(size, padded, passes + candidate_passes, rescale, pool_BQGM.device) if layout.smoothed else keys_B
        for size, padded in ((layout.H, layout.padded_H), (layout.W, layout.padded_W))
    )
    table = mutation.rows_RM.contiguous() if isinstance(mutation, Table) else keys_B
    drawn = one_BP is None or two_BP is None
    from searcher.kernels import fused

    # The kernel is launched on the current device, which need not be the tensors'.
    with torch.cuda.device_of(pool_BQGM):  # type: ignore[no-untyped-call]
        fused.children_kernel[(B * count,)](
            pool_BQGM.contiguous(),
            out_BPGM,
            keys_B.contiguous(),
            keys_B if one_BP is None else one_BP.contiguous(),
            keys_B if two_BP is None else two_BP.contiguous(),
            table,
            down,
            across,
            counter,
            strength,
            count,
            Q,
            len(table) - G + 1,
            out_BPGM.stride(0),
            G,
            layout.H,
            layout.W,
            EPS=NORMALISE_EPS,
            T=layout.T,
            TILES=math.ceil(G / layout.T),
            HP=layout.padded_H,
            WP=layout.padded_W,
            DRAWN=drawn,
            TABLE=isinstance(mutation, Table),
            SMOOTH_MUTATION=passes > 0,
            SMOOTH_CHILD=candidate_passes > 0,
            RECENTRE=recentre,
            num_warps=layout.warps,
            enable_fp_fusion=True,
        )
    return out_BPGM


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a candidate lies in registers: T groups at a time of padded_H x padded_W positions, powers of two.

    A map that is smoothed has its sides padded to at least 16 for the matrix products; any other is one row of M positions.
    """

    H: int
    W: int
    padded_H: int
    padded_W: int
    T: int
    smoothed: bool

    @classmethod
    def of(cls, G: int, map_shape: tuple[int, int], *, smoothed: bool) -> Layout:
        """Return the layout of G groups of a map; raises ValueError if a group does not fit."""
        H, W = map_shape if smoothed else (1, math.prod(map_shape))
        padded_H = max(_power_of_two(H), _LEAST_SIDE) if smoothed else 1
        padded_W = max(_power_of_two(W), _LEAST_SIDE)
        values = padded_H * padded_W
        if values > _MOST_VALUES:
            raise ValueError(f"a group of {H * W} values takes {values} registers, more than {_MOST_VALUES}; search without kernels")
        T = min(_power_of_two(G), max(1, _TILE_VALUES // values))
        return cls(H=H, W=W, padded_H=padded_H, padded_W=padded_W, T=T, smoothed=smoothed)

    @property
    def warps(self) -> int:
        """Warps of a program."""
        return min(16, max(1, self.T * self.padded_H * self.padded_W // _VALUES_PER_WARP))


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _check(
    pool_BQGM: Tensor, mutation: Table | Philox, map_shape: tuple[int, int], passes: int, candidate_passes: int, recentre: bool
) -> None:
    G, M = pool_BQGM.shape[2:]
    if not available(pool_BQGM.device):
        raise ValueError(f"the kernels do not run on {str(pool_BQGM.device)!r}; use a GPU, or the strategy without kernels")
    if pool_BQGM.dtype not in _DTYPES:
        raise ValueError(f"pool of {pool_BQGM.dtype}; convert it to float32, bfloat16 or float16")
    if math.prod(map_shape) != M:
        raise ValueError(f"map_shape {map_shape} has {math.prod(map_shape)} positions, the pool {M}; give the layer's H and W")
    if isinstance(mutation, Table) and (mutation.rows_RM.shape[1] != M or len(mutation.rows_RM) < G):
        raise ValueError(f"table of {tuple(mutation.rows_RM.shape)} for {G} x {M}; give at least {G} rows of {M} values")
    if passes and candidate_passes:
        raise ValueError(f"passes {passes} and candidate_passes {candidate_passes}; smooth the mutation or the child, not both")
    if recentre and G != 1:
        raise ValueError(f"recentre with {G} groups; logits are one group")
