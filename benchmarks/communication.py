"""What many GPUs would do: predictions of a model of the communication, and published figures.

    python benchmarks/communication.py

A step on B images takes N GPUs

    B / (N s)  +  b / w  +  r l

seconds: s images/s is the speed of one GPU, b the bytes that each sends (`traffic.py`), w bytes/s
the bandwidth of its link, l seconds the latency of a message, and r the number of messages that
wait for one another. Nothing overlaps, as in the library: it sums gradients after the backward
pass. None of this was measured on a GPU; `traffic.py --link` compares the first two terms with
measured steps of two processes.
"""

import math
from typing import NamedTuple

from bench import table
from traffic import predicted

GPUS = (8, 64, 1024)
LATENCY = 10e-6  # of a message between hosts, with what starts it: an assumption


class Link(NamedTuple):
    name: str
    bytes_per_second: float


LINKS = (Link("100 Gbit/s", 12.5e9), Link("400 Gbit/s", 50e9))

# AlexNet on 1, 2, 4 and 8 P100 of a DGX-1, images/s; 512 images a GPU, generated data, NCCL. From
# https://github.com/tensorflow/tensorflow/blob/6535ed7c270f9fb96798eec626e1883e15905226/tensorflow/docs_src/performance/benchmarks.md
PUBLISHED = {1: 2987, 2: 5658, 4: 10509, 8: 17822}
PUBLISHED_BATCH = 512
SPEEDS = (PUBLISHED[1], 10 * PUBLISHED[1])  # the second one is an assumption

# ImageNet's training images: https://www.image-net.org/challenges/LSVRC/2012/ and the size of
# ILSVRC2012_img_train.tar.
IMAGES, BYTES = 1_281_167, 147_897_477_120

# Weights and biases of eight layers, and of five.
_SUMS = {"data": 16, "hybrid": 10}
# Inputs of fc6, fc7 and fc8, and logits, forwards and backwards.
_EXCHANGES = {"data": 0, "hybrid": 8}


def rounds(way: str, gpus: int) -> int:
    """Messages that wait for one another: sums by trees, exchanges with all others at once."""
    return _SUMS[way] * 2 * math.ceil(math.log2(gpus)) + _EXCHANGES[way]


def efficiency(way: str, gpus: int, batch: int, images_per_second: float, link: Link) -> float:
    """Images/s of so many GPUs, divided by that many times those of one."""
    computing = batch / gpus / images_per_second
    sending = predicted(way, gpus, batch) / link.bytes_per_second
    return computing / (computing + sending + LATENCY * rounds(way, gpus))


def report_predictions() -> str:
    rows = []
    for speed in SPEEDS:
        for gpus in GPUS:
            for batch in (2048, PUBLISHED_BATCH * gpus):
                shares = [
                    f"{efficiency(way, gpus, batch, speed, link):.0%}"
                    for way in _SUMS
                    for link in LINKS
                ]
                rows.append((f"{speed:,}", str(gpus), f"{batch:,}", *shares))
    ways = [f"`{way}`, {link.name}" for way in _SUMS for link in LINKS]
    return table(rows, ("images/s of one", "GPUs", "batch", *ways))


def implied_bandwidth(gpus: int) -> float:
    """The bytes/s of a GPU's link at which the model would give the published speed."""
    batch = PUBLISHED_BATCH * gpus
    lost = batch / PUBLISHED[gpus] - PUBLISHED_BATCH / PUBLISHED[1]
    return predicted("data", gpus, batch) / (lost - LATENCY * rounds("data", gpus))


def report_published() -> str:
    rows = [
        (
            str(gpus),
            f"{speed:,}",
            f"{speed / gpus / PUBLISHED[1]:.0%}",
            f"{implied_bandwidth(gpus) / 1e9:.1f}" if gpus > 1 else "",
        )
        for gpus, speed in PUBLISHED.items()
    ]
    return table(rows, ("P100", "images/s", "efficiency", "GB/s of each, by the model"))


def report_images(core_speed: float) -> str:
    """What an epoch of ImageNet needs of storage and processors, given images/s of a core."""
    rows = [
        (
            f"{speed:,}",
            f"{IMAGES / speed:,.0f}",
            f"{speed * BYTES / IMAGES / 1e9:.1f}",
            f"{speed / core_speed:,.0f}",
        )
        for speed in (PUBLISHED[1], PUBLISHED[8], 10 * PUBLISHED[8])
    ]
    return table(rows, ("images/s", "seconds of an epoch", "GB/s of JPEG files", "cores"))


if __name__ == "__main__":
    print(report_predictions(), report_published(), sep="\n\n")
