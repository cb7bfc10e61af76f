"""What killed writers leave in a run's folder: temporary files, and groups that never got a manifest."""

from __future__ import annotations

from store import layout
from store.access import Files
from store.files import PARTIAL
from store.paths import MANIFEST, METADATA


def remove_temporary(files: Files, *, durable: bool) -> list[str]:
    """Remove the temporary files of documents and groups, and return the paths of groups without a manifest, sorted."""
    keys = list(files.entries("")[0])
    for folder in layout.GROUP_ROOTS:
        keys += files.below(folder)
    for key in filter(_is_temporary, keys):
        files.remove(key, durable=durable)
    described = {key.removesuffix(f"/{METADATA}") for key in keys if key.endswith(f"/{METADATA}")}
    groups = [path for path in described if path.rpartition("/")[0] not in described]
    found = files.sizes(manifests := [f"{path}/{MANIFEST}" for path in groups])
    return sorted(key.removesuffix(f"/{MANIFEST}") for key, size in zip(manifests, found, strict=True) if size is None)


def _is_temporary(key: str) -> bool:
    name = key.rpartition("/")[2]
    return name.startswith(".") and name.endswith(PARTIAL)
