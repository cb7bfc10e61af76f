"""How fast the store writes and reads a shard, beside plain zarr on the same arrays.

    python -m benchmarks.store_speed --json store-speed.json

The arrays are those of a shard of configs/mnist.toml, random, in the precision they are stored in, so that nobody converts. Every row
uses the same chunks, dtypes and codec (CRC32C, no compression, chunks of zeros written). The rows run in turn, in another order each
time; figures are medians. What is written by a row is flushed, not timed, and deleted before the next one runs.

    store        ZarrStore.write: refuses values that are not finite, SHA-256 of every chunk, CRC32C, flushes every file and folder, and
                 writes a manifest; what it returns survives a power failure
    zarr         zarr.create_array and array[...] = values: no digest, no check of values, nothing flushed: the data are in the page cache
    zarr_fsync   zarr, then fsync of every file and folder, 16 at a time: as durable as `store`, still without digests
    store_read   ZarrStore.read of every array: each chunk's CRC32C and SHA-256 checked against the manifest
    zarr_read    zarr.open_array and array[...]: the CRC32C alone is checked

`of_zarr` compares a writing row with `zarr`, `of_zarr_fsync` with `zarr_fsync`, a reading one with `zarr_read`: medians over the repeats
of the ratio within one.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import LocalStore

from benchmarks.runs import write_json
from store import ZarrStore, files
from store.formats import Form, forms_of

SHAPES = {"block0": (16, 13, 13), "block1": (16, 6, 6), "block2": (16, 3, 3), "logits": (10,)}
FITNESS = ("fitness_before", "fitness_after")
Arrays = Mapping[str, np.ndarray]
Seconds = dict[str, list[float]]


def main() -> None:
    """Run the benchmark."""
    options = _arguments()
    arrays = shard(options.images)
    megabytes = sum(array.nbytes for array in arrays.values()) / 1e6
    print(f"{options.images} images, {megabytes:.1f} MB, chunks of {options.chunk_mb:g} MB, {options.repeats} repeats")
    with tempfile.TemporaryDirectory(prefix="store-speed-", dir=options.folder) as folder:
        seconds = measure(arrays, Path(folder), chunk_mb=options.chunk_mb, repeats=options.repeats)
    rows = [row(name, seconds, megabytes) for name in seconds]
    _print(rows)
    write_json(options.json, rows)


def shard(images: int) -> dict[str, np.ndarray]:
    """Return the arrays of a shard of `images`, random."""
    rng = np.random.default_rng(0)
    targets = {name: rng.standard_normal((images, *shape), np.float32).astype(np.float16) for name, shape in SHAPES.items()}
    return targets | {name: rng.standard_normal((images, len(SHAPES)), np.float32) for name in FITNESS}


def measure(arrays: Arrays, folder: Path, *, chunk_mb: float, repeats: int) -> Seconds:
    """Return the seconds of every repeat of every row."""
    forms = forms_of("shard", arrays, {}, finite=True, chunk_mb=chunk_mb)
    store = ZarrStore(folder / "store", chunk_mb=chunk_mb)
    written = store.write("read", arrays, attributes={})
    plain = folder / "zarr-read"
    write_zarr(plain, arrays, forms)

    def with_fsync(target: Path) -> None:
        write_zarr(target, arrays, forms)
        files.sync_all([target, *files.tree(target)])

    rows: dict[str, Callable[[Path], object]] = {
        "store": lambda target: store.write(target.name, arrays, attributes={}),
        "zarr": lambda target: write_zarr(target, arrays, forms),
        "zarr_fsync": with_fsync,
        "store_read": lambda target: [store.read(written, name) for name in arrays],
        "zarr_read": lambda target: read_zarr(plain, arrays),
    }
    seconds: Seconds = {name: [] for name in rows}
    # The first repeat warms up and is not counted.
    for repeat in range(repeats + 1):
        order = list(rows)
        for name in order[repeat % len(order) :] + order[: repeat % len(order)]:
            target = folder / ("store" if name == "store" else "plain") / f"{name}-{repeat}"
            begin = time.perf_counter()
            rows[name](target)
            elapsed = time.perf_counter() - begin
            if repeat:
                seconds[name].append(elapsed)
            if target.exists():
                files.sync_all(files.tree(target))
                shutil.rmtree(target)
    return seconds


def write_zarr(folder: Path, arrays: Arrays, forms: Mapping[str, Form]) -> None:
    """Write the arrays by zarr alone."""
    group = zarr.create_group(store=LocalStore(folder))
    for name, form in forms.items():
        array = group.create_array(
            name,
            shape=form.shape,
            dtype=form.dtype,
            chunks=(form.chunk_rows, *form.shape[1:]),
            filters=None,
            compressors=[Crc32cCodec()],
            fill_value=0,
            config={"write_empty_chunks": True},
        )
        array[...] = arrays[name]


def read_zarr(folder: Path, arrays: Arrays) -> list[object]:
    """Read the arrays by zarr alone."""
    return [zarr.open_array(store=LocalStore(folder, read_only=True), path=name, mode="r")[...] for name in arrays]


def row(name: str, seconds: Seconds, megabytes: float) -> dict[str, str | float]:
    """Return a row: median MB/s and milliseconds, and the ratios to zarr."""
    found: dict[str, str | float] = {
        "name": name,
        "mb_per_s": megabytes / statistics.median(seconds[name]),
        "ms": 1e3 * statistics.median(seconds[name]),
    }
    yardsticks = {"of_zarr_read": "zarr_read"} if name.endswith("_read") else {"of_zarr": "zarr", "of_zarr_fsync": "zarr_fsync"}
    for ratio, other in yardsticks.items():
        found[ratio] = statistics.median(theirs / ours for ours, theirs in zip(seconds[name], seconds[other], strict=True))
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="images of the shard")
    parser.add_argument("--chunk-mb", type=float, default=4.0, help="size of a chunk (`store.chunk_mb`)")
    parser.add_argument("--repeats", type=int, default=10, help="times each row runs")
    parser.add_argument("--folder", type=Path, help="folder to write in; by default the system's for temporary files")
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    return parser.parse_args()


def _print(rows: list[dict[str, str | float]]) -> None:
    print(f"{'':12}{'MB/s':>8}{'ms':>10}{'of zarr':>10}{'of zarr + fsync':>18}")
    for row in rows:
        ratios = [row[key] for key in ("of_zarr", "of_zarr_fsync", "of_zarr_read") if key in row]
        texts = [f"{float(ratio):.2f}" for ratio in ratios]
        print(f"{row['name']:12}{float(row['mb_per_s']):8.0f}{float(row['ms']):10.1f}{texts[0]:>10}{''.join(texts[1:]):>18}")


if __name__ == "__main__":
    main()
