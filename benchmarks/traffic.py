"""Bytes that a process sends to the others in a step, for each way to divide a step over processes.

    python benchmarks/traffic.py                      # two and four processes on this machine
    python benchmarks/traffic.py --wire               # and what the network interface has sent
    python benchmarks/traffic.py --link 1gbit 10gbit  # and seconds of a step with such a link each

The paper's network with 1000 classes, in float32. With P parameters, C of them of convolutions, a
batch of B images on N processes, I values of an image, F of pool5 (flattened), H of fc6 and fc7
together, K classes and M values of conv3's input, a process sends

    data    4 (N-1)/N (2 P)
    hybrid  4 (N-1)/N (2 C + B (2 F + 2 H + 2 K/N))
    towers  4 (N-1)/N (B (I + 2 M + 2 F + 2 H + 2 K/N)), N = 2

bytes, and half of the first line where gradients are summed in bfloat16. A sum over processes costs
each of them 2 (N-1)/N of its values (a ring), activations cross once forwards and once backwards,
images once. Counted is what is handed to torch.distributed, of a sum that of the ring.

``--wire`` and ``--link`` need Linux, root, and util-linux and iproute2: the processes get a network
namespace of their own, and with ``--link`` its loopback interface is limited to the rate times the
number of processes, as if each had a cable of that rate.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from alexnet_lib import AlexNet, Recipe, RunOptions
from alexnet_lib.network.architecture import Conv, layer_infos
from alexnet_lib.training.batches import labelled
from alexnet_lib.training.distributed import joined
from alexnet_lib.training.metrics import Totals
from alexnet_lib.training.optimization import build_step
from alexnet_lib.training.parallel import Split

ROUNDED = "data, sums in bfloat16"
WAYS = ("data", ROUNDED, "hybrid", "towers")
CLASSES = 1000
STEPS = 3


def ways_of(processes: int) -> tuple[str, ...]:
    """The towers are two."""
    return tuple(way for way in WAYS if way != "towers" or processes == 2)


def predicted(way: str, processes: int, batch: float) -> float:
    """Bytes, by the formulas above."""
    infos = {info.layer.name: info for info in layer_infos("paper", None, CLASSES)}
    sizes = {name: torch.Size(info.output_shape).numel() for name, info in infos.items()}
    parameters = sum(info.parameters for info in infos.values())
    convolutions = sum(i.parameters for i in infos.values() if isinstance(i.layer, Conv))
    images = torch.Size(infos["conv1"].input_shape).numel()
    features = sizes["flatten"] + sizes["fc6"] + sizes["fc7"] + CLASSES / processes
    values = {
        "data": 2 * parameters,
        ROUNDED: parameters,
        "hybrid": 2 * convolutions + 2 * batch * features,
        "towers": batch * (images + 2 * sizes["pool2"] + 2 * features),
    }
    return 4 * (processes - 1) / processes * values[way]


def equal_at(way: str, other: str, processes: int) -> float:
    """The batch size at which two ways send the same; both are linear in it."""
    starts, slopes = [], []
    for name in (way, other):
        starts.append(predicted(name, processes, 0))
        slopes.append(predicted(name, processes, 1) - starts[-1])
    return (starts[1] - starts[0]) / (slopes[0] - slopes[1])


def counted(sent: list[float]) -> None:
    """From now on, adds what torch.distributed is given to send."""

    def counting(name: str, sends: Callable[..., float]) -> None:
        real = getattr(dist, name)

        def call(*arguments: Any, **named: Any) -> Any:
            sent[0] += sends(*arguments)
            return real(*arguments, **named)

        setattr(dist, name, call)

    rank, size = dist.get_rank(), dist.get_world_size()
    counting("all_reduce", lambda tensor: 2 * (size - 1) / size * tensor.nbytes)
    counting("all_gather", lambda _, tensor: (size - 1) * tensor.nbytes)
    counting(
        "all_to_all_single",
        lambda _, given, __, sizes: (given.numel() - sizes[rank]) * given.itemsize,
    )


def wire() -> int:
    """Bytes that the loopback interface has sent."""
    (line,) = (x for x in Path("/proc/net/dev").read_text().splitlines() if "lo:" in x)
    return int(line.split()[9])


def measure(way: str, batch: int) -> None:
    """In one of several processes: the first one prints bytes, bytes sent and seconds of a step."""
    sent = [0.0]
    torch.manual_seed(0)
    with joined() as group:
        counted(sent)
        model = AlexNet(CLASSES)
        recipe, options = Recipe("traffic"), RunOptions("cpu", "float32")
        if way == ROUNDED:
            options = replace(options, reduce_dtype="bfloat16")
        else:
            options = replace(options, parallel=way)
        split = Split(model, options, group)
        step = build_step(
            recipe, split.network(model), options, group=group, split=split.parameters
        )
        device, totals = torch.device("cpu"), Totals(torch.device("cpu"))
        rank, size = group.rank, group.size
        count = batch // size + (rank < batch % size)
        place = group.places(SimpleNamespace(bad_images={}))
        images, labels = torch.randn(count, 3, 227, 227), torch.randint(CLASSES, (count,))
        seconds = []
        for _ in range(1 + STEPS):
            group.gather(None)
            sent[0], before, began = 0.0, wire(), time.perf_counter()
            step.train_on([labelled(images, labels, device, place(count))], totals)
            group.gather(None)
            seconds.append(time.perf_counter() - began)
            after = wire()
        if group.is_first:
            print(sent[0], (after - before) / size, statistics.median(seconds[1:]))


class Measured(NamedTuple):
    """Of a step, as the first process has it; ``wire`` is what a process has sent in the mean."""

    counted: float
    wire: float
    seconds: float


def measured(way: str, processes: int, batch: int, rate: str | None, *, alone: bool) -> Measured:
    """Starts the processes; ``alone`` in a network of their own, and with a rate, with limits."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), __file__]
    command += ["--measure", way, "--batch", str(batch)]
    if alone:
        limit = ""
        if rate is not None:
            bits = processes * float(rate.removesuffix("gbit"))
            limit = f"tc qdisc add dev lo root tbf rate {bits}gbit burst 1mb latency 50ms && "
        script = f'ip link set lo up && {limit}exec "$@"'
        command = ["unshare", "--net", "sh", "-c", script, "sh", *command]
    with tempfile.TemporaryDirectory() as folder:
        ran = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return Measured(*(float(number) for number in ran.stdout.split()))


def print_bytes(processes: Sequence[int], batches: Sequence[int], *, with_wire: bool) -> None:
    print("| processes | batch | way | MB, formula | counted |" + " sent |" * with_wire)
    print("|--:|--:|---|--:|--:|" + "--:|" * with_wire)
    for number in processes:
        ways = ways_of(number)
        for batch, way in itertools.product(batches, ways):
            step = measured(way, number, batch, None, alone=with_wire)
            figures = [predicted(way, number, batch), step.counted, step.wire]
            cells = " | ".join(f"{x / 1e6:.2f}" for x in figures[: 2 + with_wire])
            print(f"| {number} | {batch} | {way} | {cells} |", flush=True)
        for way in ways[2:]:
            images = equal_at("data", way, number)
            print(f"{way} sends less than data below {images:.0f} images")
    print(f"hybrid sends less than towers above {equal_at('hybrid', 'towers', 2):.0f} images")


def print_seconds(processes: Sequence[int], batches: Sequence[int], rates: Sequence[str]) -> None:
    """What a step takes without a limit; and with each: that and its bytes, and measured."""
    print("| processes | batch | way | s |" + "".join(f" {x}: predicted | s |" for x in rates))
    print("|--:|--:|---|--:|" + "--:|--:|" * len(rates))
    for number in processes:
        ways = ways_of(number)
        for batch, way in itertools.product(batches, ways):
            free = measured(way, number, batch, None, alone=True)
            cells = [free.seconds]
            for rate in rates:
                bits = float(rate.removesuffix("gbit")) * 1e9
                limited = measured(way, number, batch, rate, alone=True)
                cells += [free.seconds + 8 * predicted(way, number, batch) / bits, limited.seconds]
            shown = " | ".join(f"{seconds:.2f}" for seconds in cells)
            print(f"| {number} | {batch} | {way} | {shown} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--wire", action="store_true")
    parser.add_argument("--link", nargs="+", metavar="RATE", help="in Gbit/s, as in 2.5gbit")
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.batch[0])
    elif arguments.link:
        print_seconds(arguments.processes, arguments.batch, arguments.link)
    else:
        print_bytes(arguments.processes, arguments.batch, with_wire=arguments.wire)


if __name__ == "__main__":
    main()
