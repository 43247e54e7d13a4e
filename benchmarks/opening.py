"""What opening a folder of images or shards costs: a line of the table in docs/data.md.

    python benchmarks/opening.py photos            # all folders or shards in it are training images

Time and the largest memory of this process, above what it has after the imports; the first batch is
of 64 images and includes the statistics of 500.
"""

import resource
import sys
import time

from alexnet_lib import build_loaders
from alexnet_lib.data import cifar10  # noqa: F401  (its import is not to be counted)
from alexnet_lib.data.sources import open_parts


def peak_megabytes() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def main(data: str) -> None:
    before, elapsed, processor = peak_megabytes(), time.perf_counter(), time.process_time()
    parts = open_parts(data, parts={})
    processor, elapsed = time.process_time() - processor, time.perf_counter() - elapsed
    opened = peak_megabytes() - before
    next(iter(build_loaders(parts, stats_images=500, batch_size=64).train))
    first = peak_megabytes() - before
    kind = type(parts.train).__name__
    print(f"| {len(parts.train):,} | {kind} | {processor:.2f} | {elapsed:.1f} ", end="")
    print(f"| {opened:.0f} MB | {first:.0f} MB |")


if __name__ == "__main__":
    main(sys.argv[1])
