"""An hour of training that is killed at random moments: the same bits, and nothing that grows.

    python soak.py [SECONDS]

Linux only: memory, open files and threads are those of ``/proc``.
"""

import itertools
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers import write_class_folders
from processes import PHOTO, assert_same_result, begin
from tiny import tiny_recipe, use_tiny

from alexnet_lib.devices import RunOptions
from alexnet_lib.training.fit import fit

# A life of the process: seconds until it is killed, and those at its start that do not count.
LIFE = (20.0, 120.0)
SETTLING = 10.0
# Seconds of a run and its repetition; their epochs are doubled until they take about as long.
LONGEST = 600.0
# Allowed growth within a life; the allocator of the C library keeps some of what is freed.
MEGABYTES = 20
# The processes of the test part begin when the training has ended.
FILES, THREADS = 12, 4


class Sample(NamedTuple):
    """What a process and its workers hold."""

    megabytes: float
    files: int
    threads: int


def sample(process: Any) -> Sample:
    """What a process holds now."""
    folder = Path("/proc", str(process.pid))
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    megabytes = int(status["RssAnon"].split()[0]) / 1000
    return Sample(megabytes, len([*(folder / "fd").iterdir()]), int(status["Threads"]))


def train(folder: Path, files: Path, epochs: int, workers: int) -> None:
    """Trains on photos."""
    with pytest.MonkeyPatch.context() as patch:
        use_tiny(patch)
        fit(
            files,
            recipe=tiny_recipe(epochs=epochs, dropout=0.5, resize_ratio=1.2, random_crop=True),
            out=folder,
            resume="auto",
            checkpoint_every=1,
            options=RunOptions("cpu", "float32", num_workers=workers, progress=False),
        )


def live(process: Any, seconds: float, grown: Callable[[Sample, Sample], None]) -> None:
    """Watches a process for so long, and kills it if it still lives."""
    began, first = time.monotonic(), None
    while process.is_alive() and time.monotonic() - began < seconds:
        time.sleep(1)
        if time.monotonic() - began > SETTLING and process.is_alive():
            now = sample(process)
            first = first or now
            grown(first, now)
    process.kill()
    process.join()


def main(seconds: float) -> None:
    """Trains and kills for so many seconds, and compares with a run that was not killed."""
    draw, began, kills, worst = random.Random(0), time.monotonic(), 0, Sample(0, 0, 0)

    def grown(first: Sample, now: Sample) -> None:
        nonlocal worst
        growth = [after - before for before, after in zip(first, now, strict=True)]
        worst = Sample(*(max(pair) for pair in zip(worst, growth, strict=True)))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_class_folders(folder / "files", count=48, size=PHOTO)
        epochs = 200
        for number in itertools.count():
            run, round_began = folder / f"run {number}", time.monotonic()
            while not (run / "result.json").exists():
                process = begin(train, run, files, epochs, draw.choice((0, 2)))
                live(process, draw.uniform(*LIFE), grown)
                kills += process.exitcode != 0
            whole = folder / f"whole {number}"
            process = begin(train, whole, files, epochs, 0)
            process.join()
            assert_same_result(run, whole)
            now = time.monotonic()
            print(f"{now - began:,.0f} s, {kills} kills, {epochs} epochs: the same bits; {worst}")
            if now - began > seconds:
                break
            epochs *= 2 if now - round_began < LONGEST / 2 else 1
    assert worst.megabytes < MEGABYTES, worst
    assert worst.files <= FILES, worst
    assert worst.threads <= THREADS, worst


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 3600)
