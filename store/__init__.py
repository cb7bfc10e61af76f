"""The representation store: arrays in, arrays out, verified on the way; numpy and zarr, no torch, no gRPC.

A *group* is a folder of arrays plus a manifest, written last, that makes it readable; a *document* is one JSON file, whole or absent.

    base          what a group and a store are: `Reference`, the two protocols
    manifest      `Manifest`, `ArrayInfo` and their bytes
    formats       arrays as stored: precision, chunks, digests
    documents     documents as bytes with their digest
    paths         which paths and names are accepted
    access        `Files`: what a store does with files, wherever they lie
    local_files   `LocalFiles`: those of a folder on a local or shared disk
    object_files  `ObjectFiles`: those of an object store (imported at first use)
    retrying      requests to an object store, tried again while that may help
    patience      how long something is waited for
    files         files on a disk that appear whole or not at all
    zarr_store    `ZarrStore`: groups and documents as files
    zarr_arrays   the arrays of one of its groups, through Zarr v3 (imported at first use)
    zarr_writing  how its groups are written (imported at first use)
    pieces        groups given piece by piece
    memory_store  `MemoryStore`: the same contract in memory
    opening       from what a user writes for a store to a store
    layout        where things lie in a run's folder
    references    the reference of a group that is there
    parameters    named parameters as one flat array per dtype
    verification  checks of a group and of a whole run
"""

from __future__ import annotations

from store.base import DocumentStore, GroupWriter, Reference, RepresentationStore, Store
from store.manifest import ArrayInfo, Manifest
from store.memory_store import MemoryStore
from store.opening import open_store
from store.references import reference_at
from store.zarr_store import ZarrStore

__all__ = [
    "ArrayInfo",
    "DocumentStore",
    "GroupWriter",
    "Manifest",
    "MemoryStore",
    "Reference",
    "RepresentationStore",
    "Store",
    "ZarrStore",
    "open_store",
    "reference_at",
]
