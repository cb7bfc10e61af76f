"""Evolution on a CPU as compiled code: where the network above the layer allows it, whole searches without a tensor operation.

`compiled_search` is the way in: it returns None where the search has to be done by tensors (`searcher.layer_search`), which is the
reference: the same draws and the same choices, sums in another order. docs/design/0010-compiled-search.md has the reasons and the speed.
"""

from __future__ import annotations

from searcher.compiled.evolution import CompiledSearch, compiled_search

__all__ = ["CompiledSearch", "compiled_search"]
