"""Where the time goes: one table of ratios, each within one run, its sides taking turns.

    python benchmarks/bench.py                     # everything; about 12 minutes on two CPU cores
    python benchmarks/bench.py --only lrn,loader   # some of it; the file keeps its other blocks
    python benchmarks/bench.py --device cuda       # on a GPU; the aim is under 5 minutes
    python benchmarks/bench.py --small             # a trial of the code in seconds; stores nothing
    python benchmarks/bench.py --show FILE.json    # the table of an earlier run

Figures are medians; a ratio is one of two medians of the same block. The result goes to
benchmarks/results/ as JSON, with versions and processor.
"""

import argparse
import gc
import io
import json
import multiprocessing
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.amp import GradScaler

from alexnet_lib import (
    RECIPES,
    AlexNet,
    BatchLoader,
    HorizontalFlip,
    LocalResponseNorm,
    Placement,
    Preprocess,
    RunOptions,
    keep_freed_memory,
    predict,
    prepare_loaders,
    prepare_model,
    summary,
    train_one_epoch,
)
from alexnet_lib.data.images import ImageTensors
from alexnet_lib.data.sources import open_parts
from alexnet_lib.devices import (
    DTYPES,
    MEMORY_FORMATS,
    multiplies_bfloat16,
    multiplies_float16,
    versions,
)
from alexnet_lib.kernels import cpu
from alexnet_lib.network import normalization
from alexnet_lib.training.metrics import Totals
from alexnet_lib.training.run_files import RunFiles
from alexnet_lib.training.state import TrainingRun
from alexnet_lib.training.step import TrainingStep, arithmetic

sys.path.insert(0, str(Path(__file__).parent))
import photos
import tutorial

HERE = Path(__file__).parent
EPOCH = 50_000  # training images of CIFAR-10
MAPS = ((96, 55, 55), (256, 27, 27))  # what norm1 and norm2 see
STATISTICS: dict[str, Any] = {"mean": (0.49, 0.48, 0.45), "std": (0.25, 0.24, 0.26)}

Timings = dict[str, list[float]]


class Bench:
    """The blocks of the result, each a method that returns its figures by name."""

    def __init__(
        self, device: torch.device, rounds: int, data: str, images: int, *, small: bool = False
    ) -> None:
        self.device, self.rounds, self.data, self.images = device, rounds, data, images
        self.small, self.cuda = small, device.type == "cuda"
        self.batch = 4 if small else 128
        # The first fills caches; after the second, memory that is kept has found its places. On
        # CUDA, torch.compile records its graphs in the second or third, and clocks rise.
        self.untimed = 0 if small else 5 if self.cuda else 2
        # What the hardware multiplies; emulated bfloat16 would take hours.
        native = {
            "float32": True,
            "bfloat16": multiplies_bfloat16(device),
            "float16": multiplies_float16(device),
        }
        self.native_dtypes = {name: DTYPES[name] for name in native if native[name]}
        # What is bound by memory, a CPU also does in bfloat16 that it cannot multiply.
        self.dtypes = dict(self.native_dtypes)
        if device.type == "cpu":
            self.dtypes["bfloat16"] = torch.bfloat16
        if self.cuda:
            torch.cuda.set_device(device)
            self._block = torch.empty(2**31, dtype=torch.uint8, device=device)

    def alternate(
        self, sides: dict[str, Callable[[], object]], rounds: int = 0, *, kernels: bool = False
    ) -> Timings:
        """Seconds of each side, in turns, after some of each that do not count.

        They last from the call until the device is done; with ``kernels``, on CUDA, only while the
        device computes.
        """
        if self.small:
            rounds = 1
        seconds = self._seconds_on_cuda if kernels and self.cuda else self._seconds
        timings: Timings = {name: [] for name in sides}
        for turn in range((rounds or self.rounds) + self.untimed):
            for name, side in sides.items():
                taken = seconds(side)
                if turn >= self.untimed:
                    timings[name].append(taken)
        return timings

    def _seconds(self, side: Callable[[], object]) -> float:
        started = time.perf_counter()
        side()
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter() - started

    def _seconds_on_cuda(self, side: Callable[[], object]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # Keeps the device busy while the CPU launches the side, and takes its inputs out of the
        # cache.
        self._block.zero_()
        begin.record()
        side()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1000

    def copy(self) -> dict[str, Any]:
        """A copy within the memory of the device: gigabytes a second, those read and written."""
        count = 2**20 if self.small else 2**28 if self.cuda else 2**26
        source = torch.ones(count, device=self.device)
        target = torch.empty_like(source)
        timings = self.alternate({"GB/s": lambda: target.copy_(source)}, kernels=True)
        return per_second(2 * source.nbytes / 1e9, timings)

    def peak(self) -> dict[str, Any]:
        """Matrix multiplication at 4096.

        In float32 on a CPU by MKL and by oneDNN; on CUDA also in TF32, which torch's convolutions
        use for float32 unless told otherwise.
        """
        n = 128 if self.small else 4096
        sides: dict[str, Callable[[], object]] = {}
        for name, dtype in self.native_dtypes.items():
            a, b = (torch.randn(n, n, device=self.device).to(dtype) for _ in range(2))
            sides[f"{name} torch.mm"] = lambda a=a, b=b: a @ b
            if dtype is torch.float32 and self.device.type == "cpu":
                sides[f"{name} oneDNN"] = lambda a=a, b=b: onednn_product(a, b)
            if dtype is torch.float32 and self.cuda:
                sides[f"{name} torch.mm, TF32"] = lambda a=a, b=b: tf32_product(a, b)
        timings = self.alternate(sides, max(7, self.rounds), kernels=True)
        return {name: 2 * n**3 / min(times) / 1e9 for name, times in timings.items()}

    def lrn(self) -> dict[str, Any]:
        """LRN alone, forward and backward, against torch's; a ReLU for scale. Milliseconds."""
        results = {}
        for maps in MAPS:
            for form, memory_format in MEMORY_FORMATS.items():
                for precision, dtype in self.dtypes.items():
                    x = torch.randn(self.batch, *maps, device=self.device, dtype=dtype).relu()
                    x = x.to(memory_format=memory_format)
                    layers = {"ours": LocalResponseNorm(), "ReLU": nn.ReLU()}
                    # torch has no bfloat16 kernel for it on the CPU.
                    if self.device.type != "cpu" or dtype is torch.float32:
                        layers["torch"] = nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0)
                    key = f"{'x'.join(map(str, maps))} {precision} {form}"
                    results[key] = milliseconds(self._forward_and_backward(layers, x))
                    results[key]["bytes"] = x.nbytes
        return results

    def _forward_and_backward(self, layers: dict[str, nn.Module], x: torch.Tensor) -> Timings:
        leaf = x.detach().requires_grad_()
        grad = torch.randn_like(x)
        outputs = {name: layer(leaf) for name, layer in layers.items()}
        sides: dict[str, Callable[[], object]] = {}
        for name, layer in layers.items():
            sides[f"{name} forward"] = lambda layer=layer: layer(x)
            sides[f"{name} backward"] = lambda y=outputs[name]: torch.autograd.grad(
                y, leaf, grad, retain_graph=True
            )
        return self.alternate(sides, kernels=True)

    def step(self) -> dict[str, Any]:
        """A training step at batch 128: images a second, all under the same allocator setting."""
        results = {}
        for precision in self.native_dtypes:
            sides = {
                "tutorial": self._plain_step(tutorial.AlexNet(), 227, precision),
                "torchvision": self._plain_step(
                    torchvision.models.alexnet(num_classes=10), 224, precision, tuned=True
                ),
                "torchvision, the library's loop": self._best_step(
                    torchvision.models.alexnet(num_classes=10), 224, precision
                ),
                "paper": self._best_step(AlexNet(10, seed=0), 227, precision),
                "paper without LRN": self._best_step(
                    without_lrn(AlexNet(10, seed=0)), 227, precision
                ),
                "single_tower": self._best_step(
                    AlexNet(10, architecture="single_tower", seed=0), 227, precision
                ),
            }
            results[precision] = per_second(self.batch, self.alternate(sides))
        return results

    def compiled(self) -> dict[str, Any]:
        """Whole-model torch.compile against the same step without. Images a second."""
        modes: dict[str, str | None] = {"paper": None, "paper, torch.compile": "default"}
        if self.cuda:
            modes["paper, torch.compile with CUDA graphs"] = "reduce-overhead"
        results = {}
        for precision in self.native_dtypes:
            if precision == "float16" and "bfloat16" in self.native_dtypes:
                continue  # compiling takes long
            torch.compiler.reset()
            sides = {
                name: self._best_step(AlexNet(10, seed=0), 227, precision, compiled=mode)
                for name, mode in modes.items()
            }
            results[precision] = per_second(self.batch, self.alternate(sides))
        return results

    def layers(self) -> dict[str, Any]:
        """Each layer by itself on its own input: milliseconds forward and backward."""
        results: dict[str, Any] = {}
        for precision in self.native_dtypes:
            placement = self._placement(precision)
            for name, model, size in (
                ("paper", AlexNet(10, seed=0), 227),
                ("torchvision", torchvision.models.alexnet(num_classes=10), 224),
            ):
                model.to(self.device, memory_format=placement.memory_format)  # type: ignore[call-overload]
                images, _ = self._batch(size, placement)
                results[f"{name} {precision}"] = self._times_of_layers(model, images, precision)
        return results

    def _times_of_layers(
        self, model: nn.Module, images: torch.Tensor, precision: Any
    ) -> dict[str, dict[str, float]]:
        x, results = images, {}
        for name, layer in model.named_modules():
            if name == "" or isinstance(layer, nn.Sequential):
                continue
            if isinstance(layer, nn.Linear):
                x = x.flatten(1)
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # what it would overwrite is needed again here
            x = x.detach().requires_grad_(x is not images)
            wanted = [*([x] if x.requires_grad else []), *layer.parameters()]
            with arithmetic(precision, self.device):
                y = layer(x)
                grad = torch.randn_like(y)

                def forward(layer: nn.Module = layer, x: torch.Tensor = x) -> None:
                    layer(x)

                def backward(y: Any = y, wanted: Any = wanted, grad: Any = grad) -> None:
                    torch.autograd.grad(y, wanted, grad, retain_graph=True)

                sides = {"forward": forward, "backward": backward}
                timings = self.alternate(sides, kernels=True)
            results[name] = milliseconds(timings)
            x = y
        return results

    def _placement(self, precision: str) -> Placement:
        """That of ``fit`` on this device."""
        return RunOptions(str(self.device), precision).resolved().placement

    def _batch(self, size: int, placement: Placement) -> Any:
        images = torch.randn(self.batch, 3, size, size, device=self.device)
        labels = torch.randint(10, (self.batch,), device=self.device)
        return images.to(placement.dtype, memory_format=placement.memory_format), labels

    def _plain_step(
        self, model: nn.Module, size: int, precision: str, *, tuned: bool = False
    ) -> Callable[[], object]:
        """Torch alone, as the blog post trains, or tuned: our placement, fused SGD, no `item()`."""
        placement = self._placement(precision) if tuned else Placement(self.device)
        model.to(self.device, memory_format=placement.memory_format).train()  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(
            model.parameters(), lr=0.0001, momentum=0.9, weight_decay=5e-4, fused=tuned or None
        )
        images, labels = self._batch(size, placement)
        dtype = DTYPES[precision]
        scaler = GradScaler(self.device.type, enabled=dtype is torch.float16)

        def step() -> None:
            with torch.autocast(self.device.type, dtype, enabled=dtype is not torch.float32):
                loss = F.cross_entropy(model(images), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            if not tuned:
                loss.item()

        return step

    def _best_step(
        self, model: nn.Module, size: int, precision: Any, *, compiled: str | None = None
    ) -> Callable[[], object]:
        """As ``fit`` trains: its placement, fused SGD, the library's own step."""
        placement = self._placement(precision)
        model.to(self.device, memory_format=placement.memory_format).train()  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(
            model.parameters(), lr=0.0001, momentum=0.9, weight_decay=5e-4, fused=True
        )
        images, labels = self._batch(size, placement)
        trained: Any = torch.compile(model, mode=compiled) if compiled else model
        train = TrainingStep(trained, optimizer, self.device, precision)

        def step() -> None:
            totals = Totals(self.device)
            train(images, labels, totals)
            totals.compute()  # waits for the device
            optimizer.zero_grad(set_to_none=True)

        return step

    def epoch(self) -> dict[str, Any]:
        """Seconds of an epoch as long as CIFAR-10's, images in memory, and the most device memory.

        On a CPU, and for the script everywhere, the seconds are those of a part, scaled. The memory
        is what a side adds: weights, optimiser and batches, without the images.
        """
        count = EPOCH if self.cuda and not self.small else self.images
        images = self._images_in_memory(count)
        few = images.subset(torch.arange(min(count, 4 * self.batch), device=self.device))
        script = tutorial.build_loader(self.data, min(count, 20 * self.batch))
        sides: dict[str, Callable[[], Callable[[ImageTensors], float]]] = {
            "tutorial, float32": lambda: self._epoch_of_script(script)
        }
        for precision in self.native_dtypes:
            for name, (network, size) in {
                "torchvision": (lambda: torchvision.models.alexnet(num_classes=10), 224),
                "paper without LRN": (lambda: without_lrn(AlexNet(10, seed=0)), 227),
                "paper": (lambda: AlexNet(10, seed=0), 227),
            }.items():
                sides[f"{name}, {precision}"] = (
                    lambda network=network, size=size, precision=precision: self._epoch_of_library(
                        network(), size, precision
                    )
                )
        epochs, memory = {}, {}
        for name, prepared in sides.items():
            held = torch.cuda.memory_allocated() if self.cuda else 0
            if self.cuda:
                torch.cuda.reset_peak_memory_stats()
            epochs[name] = prepared()
            epochs[name](few)  # not timed
            if self.cuda:
                memory[name] = (torch.cuda.max_memory_allocated() - held) / 1e6
        timings: Timings = {name: [] for name in sides}
        for _ in range(1 if self.small else 2):
            for name, epoch in epochs.items():
                timings[name].append(EPOCH * epoch(images))
        seconds = {name: statistics.median(times) for name, times in timings.items()}
        return {"seconds": seconds, "device memory, MB": memory}

    def _epoch_of_script(self, loader: Any) -> Callable[[ImageTensors], float]:
        model = tutorial.AlexNet().to(self.device)

        def epoch(images: ImageTensors) -> float:
            del images  # the script has its own
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                return 1 / tutorial.train(model, loader, str(self.device))

        return epoch

    def _epoch_of_library(
        self, model: nn.Module, size: int, precision: str
    ) -> Callable[[ImageTensors], float]:
        """Seconds for each image, of the library's loader and step."""
        placement = self._placement(precision)
        model.to(self.device, memory_format=placement.memory_format)  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(
            model.parameters(), lr=0.0001, momentum=0.9, weight_decay=5e-4, fused=True
        )
        preprocess = Preprocess(size, size, image_fit="squash", **STATISTICS)

        def epoch(images: ImageTensors) -> float:
            loader = BatchLoader(
                images,
                preprocess,
                self.batch,
                shuffle=True,
                augmentation=(HorizontalFlip(),),
                placement=placement,
            )
            metrics = train_one_epoch(model, loader, optimizer, precision=precision, progress=False)
            return metrics.seconds / metrics.images

        return epoch

    def _images_in_memory(self, count: int) -> ImageTensors:
        """So many training images on the device, some of them several times."""
        images = open_parts(self.data).train
        if not isinstance(images, ImageTensors):
            raise ValueError(f"data is {self.data}; expected images that are held in memory")
        images = images.subset(torch.arange(count) % len(images))
        return replace(
            images, images=images.images.to(self.device), labels=images.labels.to(self.device)
        )

    def loader(self) -> dict[str, Any]:
        """The loader alone, until batches are on the device: images a second."""
        few = 64 if self.small else 1024
        count = 16 * few if self.cuda else few  # that a GPU has something to do
        part = self._images_in_memory(count)
        preprocess = Preprocess(image_fit="squash", **STATISTICS)
        theirs = tutorial.build_loader(self.data, few)
        sides: dict[str, Callable[[], object]] = {
            "tutorial": lambda: exhausted(theirs, self.device)
        }
        for precision, dtype in self.dtypes.items():
            for form, memory_format in MEMORY_FORMATS.items():
                placement = Placement(self.device, dtype, memory_format)
                ours = BatchLoader(part, preprocess, shuffle=True, placement=placement)
                sides[f"{precision} {form}"] = lambda ours=ours: exhausted(ours, self.device)
        timings = self.alternate(sides, 5)
        return per_second(few, {"tutorial": timings.pop("tutorial")}) | per_second(count, timings)

    def photos(self) -> dict[str, Any]:
        """JPEG photos from a folder, the loader alone: images a second, against torchvision's.

        Both sides decode fully; photos large enough for it also at a reduced scale.
        """
        results: dict[str, Any] = {}
        # Fewer of the large ones, which take longer; a batch for each of two workers.
        for count, width, height in ((500, 500, 375), (128, 2000, 1500)):
            count = 20 if self.small else count  # noqa: PLW2901
            with tempfile.TemporaryDirectory() as folder:
                root = Path(folder)
                photos.write_photos(root, count, width, height)
                images = open_parts(root).train
                reduced = min(width, height) >= 2 * photos.RESIZE
                loaders: dict[str, Any] = {}
                for workers in (0, 2):
                    name = f", {workers} workers" if workers else ""
                    loaders[f"torchvision{name}"] = photos.torchvisions(root, workers)
                    loaders[f"ours{name}"] = photos.ours(images, workers)
                    if reduced:
                        loaders[f"ours, reduced{name}"] = photos.ours(images, workers, "reduced")
                sides = {
                    k: lambda loader=loader: exhausted(loader, self.device)
                    for k, loader in loaders.items()
                }
                speeds = per_second(count, self.alternate(sides))
                results[f"{width}x{height}"] = {"images/s": speeds}
                if reduced:
                    results[f"{width}x{height}"]["differences"] = photos.differences(images)
                del loaders, sides
        return results

    def latency(self) -> dict[str, Any]:
        """One image through the network, in evaluation: milliseconds."""
        models = {
            "tutorial": (tutorial.AlexNet(), 227),
            "torchvision": (torchvision.models.alexnet(num_classes=10), 224),
            "paper": (AlexNet(10, seed=0), 227),
            "single_tower": (AlexNet(10, architecture="single_tower", seed=0), 227),
        }
        sides: dict[str, Callable[[], object]] = {}
        for name, (model, size) in models.items():
            model.to(self.device).eval()
            image = torch.randn(1, 3, size, size, device=self.device)
            sides[name] = torch.inference_mode()(lambda model=model, image=image: model(image))
        named = AlexNet(10, seed=0).to(self.device)
        photo = torch.randint(0, 256, (3, 375, 500), dtype=torch.uint8)
        preprocess = Preprocess()
        sides["predict, a photo of 500x375"] = lambda: predict(named, photo, preprocess=preprocess)
        return milliseconds(self.alternate(sides, 21))

    def end_to_end(self) -> dict[str, Any]:
        """An epoch of training, each in a process of its own, A B A B, on equally many images."""
        # The command line holds a tenth of the images back for validation.
        held_back = round(self.images / 9)
        theirs = [sys.executable, str(HERE / "tutorial.py"), self.data]
        theirs += ["--train-images", str(self.images), "--device", str(self.device)]
        ours = [sys.executable, "-m", "alexnet_lib", "train", self.data, "--epochs", "1"]
        ours += ["--train-images", str(self.images + held_back), "--device", str(self.device)]
        ours += ["--set", "optimizer=sgd"]  # as the script
        single = ["--architecture", "single_tower"]
        sides = {
            "tutorial": theirs,
            "tutorial, memory kept": [*theirs, "--keep-memory"],
            "single_tower float32": [*ours, "--precision", "float32", *single],
            "paper float32": [*ours, "--precision", "float32"],
        }
        if "bfloat16" in self.native_dtypes:
            sides["single_tower bfloat16"] = [*ours, "--precision", "bfloat16", *single]
            sides["paper bfloat16"] = [*ours, "--precision", "bfloat16"]
            not_kept = "paper bfloat16, memory not kept"
            sides[not_kept] = [*sides["paper bfloat16"], "--no-keep-memory"]
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for _ in range(1 if self.small else max(2, self.rounds // 2)):
            for name, command in sides.items():
                runs[name].append(measured_process(command))
        return {
            name: {figure: statistics.median(run[figure] for run in done) for figure in done[0]}
            for name, done in runs.items()
        }

    def state(self) -> dict[str, Any]:
        """Writing the state of a run of `modern` at 227 pixels, and a step of it."""
        changed: dict[str, Any] = {"train_images": 142, "epochs": 1000, "growth_fraction": 0.0}
        if self.small:
            changed |= {"train_images": 40, "batch_size": 4, "image_size": 67}
        recipe = RECIPES["modern"].overridden(changed)
        options = RunOptions(str(self.device), progress=False).resolved()
        loaders = prepare_loaders(self.data, recipe, options=options)
        model = prepare_model(loaders, recipe, options=options)
        run = TrainingRun(recipe, loaders, model, seed=0, options=options)

        def step() -> None:
            run.take_step()
            if run.epoch_read:
                run.finish_epoch()

        while not run.history:  # which gives it best weights
            step()
        with (
            tempfile.TemporaryDirectory(dir=".") as folder,
            RunFiles(Path(folder), None, every=300.0) as files,
        ):
            files.begin(run, source=self.data, given={})
            timings = self.alternate({"step": step, "state": files.write_state})
            size = (Path(folder) / "state.safetensors").stat().st_size
        seconds = {name: statistics.median(taken) for name, taken in timings.items()}
        return {**seconds, "bytes": size, "batch": recipe.batch_size}

    def growth(self) -> dict[str, Any]:
        """Seconds of an epoch against its images; memory in use after each round of epochs."""
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context) as pool:  # a process without a history
            return pool.submit(growth, self.data, str(self.device), self.batch).result()


def growth(data: str, device: str, batch: int) -> dict[str, Any]:
    keep_freed_memory()
    cpu.load()
    images = open_parts(data).train
    model = AlexNet(10, seed=0).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, fused=True)
    precision = "bfloat16" if multiplies_bfloat16(torch.device(device)) else "float32"

    def epoch(count: int) -> float:
        loader = BatchLoader(
            images.subset(torch.arange(count)),
            Preprocess(mean=(0.5,) * 3, std=(0.25,) * 3, image_fit="squash"),
            batch,
            shuffle=True,
            placement=Placement(torch.device(device), DTYPES[precision], torch.channels_last),
        )
        metrics = train_one_epoch(model, loader, optimizer, precision=precision, progress=False)
        return metrics.seconds

    epoch(2 * batch)
    counts = [4 * batch, 8 * batch, 16 * batch]
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    memory = []
    for _ in range(3):
        for count in counts:
            seconds[count].append(epoch(count))
        memory.append(memory_in_use())
    return {
        "microseconds an image": {
            str(count): 1e6 * statistics.median(times) / count for count, times in seconds.items()
        },
        "memory in use after rounds, MB": memory,
    }


# ru_maxrss counts kilobytes on Linux and bytes on macOS.
KILOBYTES = 1024 if sys.platform == "linux" else 1024**2


def memory_in_use() -> float:
    """Resident memory of this process, in MB; not a number where there is no /proc."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return float("nan")
    return int(statm.read_text().split()[1]) * resource.getpagesize() / 1024**2


def measured_process(command: list[str]) -> dict[str, float]:
    """Runs the tutorial or `alexnet-lib train`: its images a second, wall time and peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        if "alexnet_lib" in command:
            command = [*command, "--out", folder]
        started = time.perf_counter()
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - started
            output.seek(0)
            text = output.read()
        if status:
            raise RuntimeError(f"{shlex.join(command)} failed:\n{text}")
        if "alexnet_lib" in command:
            epoch = json.loads((Path(folder) / "history.jsonl").read_text(encoding="utf-8"))
            speed = epoch["train"]["images_per_second"]
        else:
            speed = float(text.split()[-2])
    return {
        "images/s": speed,
        "process seconds": seconds,
        "peak memory, MB": usage.ru_maxrss / KILOBYTES,
    }


def onednn_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    return product


def tf32_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    settings: Any = torch.backends.cuda.matmul
    former = settings.fp32_precision
    settings.fp32_precision = "tf32"
    try:
        return a @ b
    finally:
        settings.fp32_precision = former


def exhausted(loader: Any, device: torch.device) -> None:
    for images, labels in loader:
        images.to(device), labels.to(device)


def per_second(images: float, timings: Timings) -> dict[str, float]:
    return {name: images / statistics.median(times) for name, times in timings.items()}


def milliseconds(timings: Timings) -> dict[str, float]:
    return {name: 1000 * statistics.median(times) for name, times in timings.items()}


def without_lrn(model: AlexNet) -> AlexNet:
    model.features.norm1 = model.features.norm2 = nn.Identity()
    return model


def multiply_accumulates(name: str) -> tuple[int, int]:
    """Of an image, forward: all layers', and the first's, which has no gradient to pass on."""
    rows = summary(name, num_classes=10).rows
    counts = [row.multiply_accumulates for row in rows]
    return sum(counts), counts[0]


def table(rows: list[tuple[str, ...]], header: tuple[str, ...]) -> str:
    lines = [header, tuple("---" if i == 0 else "--:" for i in range(len(header))), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def report(result: dict[str, Any]) -> str:
    """The result as Markdown tables."""
    blocks = result["blocks"]
    parts = [machine(result) + "\n"]
    for name in BLOCKS:
        if name in blocks:
            parts.append(REPORTS[name](blocks))
    return "\n".join(parts)


def machine(result: dict[str, Any]) -> str:
    what = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"{result['device']}; {what}; {result['date']}"


def report_copy(blocks: dict[str, Any]) -> str:
    rows = [("read and written", f"{blocks['copy']['GB/s']:,.0f}")]
    return table(rows, ("copy within the device's memory", "GB/s"))


def report_peak(blocks: dict[str, Any]) -> str:
    rows = [(name, f"{speed:.0f}") for name, speed in blocks["peak"].items()]
    return table(rows, ("matrix product at 4096", "GFLOP/s"))


# Of a batch, that LRN reads and writes: x and y; x, the gradient of y, and that of x.
PASSES = {"forward": 2, "backward": 3}


def report_lrn(blocks: dict[str, Any]) -> str:
    speed = blocks.get("copy", {}).get("GB/s")
    rows = []
    for key, times in blocks["lrn"].items():
        cells = [key]
        for way, passes in PASSES.items():
            own, torchs = times[f"ours {way}"], times.get(f"torch {way}")
            cells += [
                ms(own, 1),
                ms(times[f"ReLU {way}"], 1),
                "" if torchs is None else ms(torchs, 0),
                "" if torchs is None else f"**{torchs / own:.0f}x**",
            ]
            if speed is not None:
                least = passes * times["bytes"] / speed / 1e6
                cells.append(f"{ms(least, 1)} ({least / own:.0%})")
        rows.append(tuple(cells))
    columns = ("ReLU", "torch", "ratio", *(["its bytes copied"] if speed is not None else []))
    return table(rows, ("LRN alone, ms", "forward", *columns, "backward", *columns))


def ms(value: float, digits: int) -> str:
    """Milliseconds, those of a GPU in more digits."""
    return f"{value:.{3 if 0 < value < 1 else digits}f}"


def report_step(blocks: dict[str, Any]) -> str:
    rows = []
    for precision, speeds in blocks["step"].items():
        peaks = [v for k, v in blocks.get("peak", {}).items() if k.startswith(precision)]
        for name, speed in speeds.items():
            share = ""
            if peaks and name in {"paper", "single_tower"}:
                every, first = multiply_accumulates(name)
                # Forward, and twice backward but for the images' own gradient.
                share = f"{2 * (3 * every - first) * speed / 1e9 / max(peaks):.0%}"
            ratios = (speed / speeds[side] for side in ("paper without LRN", "torchvision"))
            rows.append(
                (
                    f"{name}, {precision}",
                    f"{speed:.1f}",
                    *(f"{ratio:.3f}" for ratio in ratios),
                    f"{speed / speeds['tutorial']:.2f}",
                    share,
                )
            )
    header = ("training step, batch 128", "images/s", "vs without LRN", "vs torchvision")
    return table(rows, (*header, "vs tutorial", "of the peak"))


def report_layers(blocks: dict[str, Any]) -> str:
    rows = []
    for which, layers in blocks["layers"].items():
        kinds: dict[str, float] = {}
        for name, times in layers.items():
            kind = kind_of(name, which)
            kinds[kind] = kinds.get(kind, 0) + times["forward"] + times["backward"]
        rows.append((which, *(ms(kinds.get(kind, 0), 0) for kind in KINDS)))
    return table(rows, ("layers, ms forward and backward", *KINDS))


KINDS = ("conv1", "conv2 to conv5", "linear", "LRN", "pooling", "ReLU", "dropout")

# torchvision numbers its layers.
TORCHVISION = {
    "features.0": "conv1",
    **dict.fromkeys(("features.3", "features.6", "features.8", "features.10"), "conv2 to conv5"),
    **dict.fromkeys(("features.2", "features.5", "features.12", "avgpool"), "pooling"),
    **dict.fromkeys(("classifier.1", "classifier.4", "classifier.6"), "linear"),
    **dict.fromkeys(("classifier.0", "classifier.3"), "dropout"),
}
OURS = {"conv": "conv2 to conv5", "norm": "LRN", "pool": "pooling", "relu": "ReLU"}
OURS |= {"fc": "linear", "drop": "dropout", "flatten": "pooling"}


def kind_of(layer: str, which: str) -> str:
    if which.startswith("torchvision"):
        return TORCHVISION.get(layer, "ReLU")
    name = layer.rsplit(".", 1)[-1]
    return "conv1" if name == "conv1" else OURS[name.rstrip("0123456789")]


def report_compiled(blocks: dict[str, Any]) -> str:
    rows = [
        (f"{name}, {precision}", f"{speed:.1f}", f"{speed / speeds['paper']:.2f}")
        for precision, speeds in blocks["compiled"].items()
        for name, speed in speeds.items()
    ]
    return table(rows, ("torch.compile", "images/s", "ratio"))


def report_epoch(blocks: dict[str, Any]) -> str:
    seconds, memory = blocks["epoch"]["seconds"], blocks["epoch"]["device memory, MB"]
    rows = []
    for name, taken in seconds.items():
        theirs = seconds.get(f"torchvision, {name.rsplit(', ', 1)[-1]}", taken)
        rows.append(
            (
                name,
                f"{taken:,.1f}",
                f"{EPOCH / taken:,.0f}",
                f"{theirs / taken:.3f}",
                f"{seconds['tutorial, float32'] / taken:.2f}x",
                *([f"{memory[name]:,.0f}"] if memory else []),
            )
        )
    header = ("an epoch of 50,000 images", "seconds", "images/s", "vs torchvision", "vs tutorial")
    return table(rows, (*header, *(["device memory, MB"] if memory else [])))


def report_loader(blocks: dict[str, Any]) -> str:
    speeds = blocks["loader"]
    rows = [(k, f"{v:,.0f}", f"{v / speeds['tutorial']:.1f}x") for k, v in speeds.items()]
    return table(rows, ("loader alone, 32 to 227 pixels", "images/s", "ratio"))


def report_photos(blocks: dict[str, Any]) -> str:
    rows, apart = [], ""
    for size, result in blocks["photos"].items():
        speeds = result["images/s"]
        for name, speed in speeds.items():
            workers = ", 2 workers" if name.endswith(", 2 workers") else ""
            ratio = speed / speeds[f"torchvision{workers}"]
            rows.append((f"{size}, {name}", f"{speed:,.0f}", f"{ratio:.2f}x"))
        if "differences" in result:
            values = ", ".join(f"{k} {v:.2f}" for k, v in result["differences"].items())
            apart += f"\nPixels of {size} decoded at reduced scale differ, of 255: {values}.\n"
    header = ("photos, 256 to a random 227, batch 64", "images/s", "vs torchvision")
    return table(rows, header) + apart


def report_latency(blocks: dict[str, Any]) -> str:
    return table([(k, ms(v, 1)) for k, v in blocks["latency"].items()], ("one image", "ms"))


def report_state(blocks: dict[str, Any]) -> str:
    state = blocks["state"]
    share = state["state"] / (300 + state["state"])
    rows = [
        (f"step of {state['batch']} images", f"{state['step']:.2f}", ""),
        (f"state, {state['bytes'] / 1e6:,.0f} MB", f"{state['state']:.2f}", f"{share:.1%}"),
    ]
    return table(rows, ("recipe `modern`, 227 pixels", "seconds", "of the time, every 300 s"))


def report_growth(blocks: dict[str, Any]) -> str:
    growing = blocks["growth"]
    rows = [(count, f"{v:,.0f}") for count, v in growing["microseconds an image"].items()]
    memory = ", ".join(f"{value:,.0f}" for value in growing["memory in use after rounds, MB"])
    return (
        table(rows, ("images in an epoch", "microseconds an image"))
        + f"\nMemory in use after each of the rounds of these epochs, MB: {memory}.\n"
    )


def report_end_to_end(blocks: dict[str, Any]) -> str:
    runs = blocks["end_to_end"]
    sides = ("tutorial", "tutorial, memory kept")
    rows = [
        (
            name,
            f"{run['images/s']:.1f}",
            *(f"{run['images/s'] / runs[side]['images/s']:.2f}x" for side in sides),
            f"{run['process seconds']:.0f}",
            f"{run['peak memory, MB']:,.0f}",
        )
        for name, run in runs.items()
    ]
    header = ("an epoch, end to end", "images/s", "vs tutorial", "vs tutorial, memory kept")
    return table(rows, (*header, "whole process, s", "peak memory, MB"))


# End to end comes first: a process started later would count this one's memory as its peak.
REPORTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "end_to_end": report_end_to_end,
    "copy": report_copy,
    "peak": report_peak,
    "lrn": report_lrn,
    "loader": report_loader,
    "photos": report_photos,
    "latency": report_latency,
    "epoch": report_epoch,
    "step": report_step,
    "layers": report_layers,
    "compiled": report_compiled,
    "growth": report_growth,
    "state": report_state,
}
BLOCKS = tuple(REPORTS)
# They measure the CPU's allocator, decoders or disk, or the memory of the process; of an epoch on
# a GPU, "epoch" says what "end_to_end" says of one on a CPU.
CPU_ONLY = ("end_to_end", "photos", "growth", "state")


def blocks_for(device: torch.device, *, small: bool) -> tuple[str, ...]:
    """The blocks of a run that names none; a small one tries those of a GPU."""
    if small or device.type != "cpu":
        return tuple(name for name in BLOCKS if name not in CPU_ONLY)
    return tuple(name for name in BLOCKS if name != "epoch")


def describe(device: torch.device) -> str:
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return f"{name}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    name = torch.cpu.get_capabilities().get("cpu_name") or platform.processor()
    return f"{name}, {torch.get_num_threads()} threads"


def has_kernels(device: torch.device) -> bool:
    """Whether LRN is computed by the library's own kernels."""
    if device.type == "cuda":
        return normalization._gpu_kernels(device) is not None
    return device.type == "cpu" and cpu.load() is not None


def measure(
    bench: Bench, names: Sequence[str], result: dict[str, Any], out: Path | None
) -> list[str]:
    """Adds blocks to the result, and writes it after each; returns those that failed."""
    failed = []
    for name in names:
        started = time.perf_counter()
        result["blocks"].pop(name, None)
        try:
            result["blocks"][name] = getattr(bench, name)()
        except Exception:  # the other blocks are measured all the same
            traceback.print_exc()
            failed.append(name)
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        gc.collect()
        if bench.cuda:
            torch.cuda.empty_cache()
    return failed


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", help=f"blocks among {', '.join(BLOCKS)}")
    parser.add_argument("--rounds", type=int, help="timings of each side: 5, on CUDA 20")
    parser.add_argument("--data", default="shapes", help="'shapes', 'cifar10' or CIFAR-10's folder")
    parser.add_argument("--images", type=int, help="of an epoch on a CPU: 1152")
    parser.add_argument(
        "--small", action="store_true", help="tries the code; the figures mean nothing"
    )
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    parser.add_argument("--show", type=Path, help="print the table of an earlier run")
    arguments = parser.parse_args(given)
    if arguments.show:
        print(report(json.loads(arguments.show.read_text(encoding="utf-8"))))
        return
    device, small = torch.device(arguments.device), arguments.small
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", 0)
    names = arguments.only.split(",") if arguments.only else blocks_for(device, small=small)
    for name in names:
        if name not in BLOCKS or (name in CPU_ONLY and device.type != "cpu"):
            others = ", ".join(b for b in BLOCKS if device.type == "cpu" or b not in CPU_ONLY)
            parser.error(f"--only has {name!r}; expected blocks of {device.type}: {others}")
    rounds = arguments.rounds or (20 if device.type == "cuda" else 5)
    images = arguments.images or (4 if small else 1152)
    keep_freed_memory()
    cpu.load()
    bench = Bench(device, rounds, arguments.data, images, small=small)
    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "device": describe(device),
        "kernels": has_kernels(device),
        "versions": versions(),
        "data": arguments.data,
        "rounds": rounds,
        "images": images,
        "blocks": {},
    }
    out = arguments.out
    if out is None and not small:
        out = HERE / "results" / f"bench-{device.type}.json"
    if out is not None and out.exists():  # the other blocks of a run on the same machine stay
        earlier = json.loads(out.read_text(encoding="utf-8"))
        same = ("device", "versions", "data", "kernels", "rounds", "images")
        if not small and all(earlier.get(key) == result[key] for key in same):
            result["blocks"] = earlier["blocks"]
    failed = measure(bench, names, result, out)
    print(report(result))
    print("small sizes: the figures mean nothing" if small else f"written to {out}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
