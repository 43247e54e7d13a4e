"""Training on a GPU waits for nothing: all that a batch is made of is there once in an epoch.

Here the GPU is pretended (``gpu.py``), so that each line of a run on it is run, with its numbers.
"""

import math
from dataclasses import replace

import pytest
import torch
from gpu import GPU, PretendedGpu
from helpers import (
    COMPONENTS,
    Fade,
    Items,
    in_memory,
    random_batch,
    read_lazily,
    write_class_folders,
)
from tiny import QUIET, SMALL, TINY, weights_of
from torch import nn
from torch.optim import SGD

from alexnet_lib import devices
from alexnet_lib.data.augmentation import (
    ColorNoise,
    HorizontalFlip,
    RandomCrop,
    RandomShift,
    TrivialAugment,
)
from alexnet_lib.data.loaders import BatchLoader
from alexnet_lib.data.preprocess import Preprocess
from alexnet_lib.data.sources import open_parts
from alexnet_lib.devices import Placement
from alexnet_lib.kernels import cpu
from alexnet_lib.network import architecture
from alexnet_lib.network.architecture import LRN
from alexnet_lib.training import loggers, loop, muon, state
from alexnet_lib.training.loop import evaluate, train_one_epoch
from alexnet_lib.training.preparation import prepare_loaders, prepare_model
from alexnet_lib.training.recipes import RECIPES, Recipe
from alexnet_lib.training.state import TrainingRun

RUNS = {
    # From 40 pixels to 64.
    "modern": {"image_size": 64},
    "paper": {},
    # All that the two do not have, but TrivialAugment.
    "tutorial": {
        "balance": "sampler",
        "accumulation_steps": 2,
        "ema_decay": 0.5,
    },
    "finetune": {"balance": "loss", "ema_decay": 0.5},
}
any_recipe = pytest.mark.parametrize("name", RUNS)

WITHOUT_WAITING = (
    HorizontalFlip(),
    RandomShift(),
    RandomCrop(),
    ColorNoise(COMPONENTS),
    Fade(),
)
COMBINATIONS = (
    *((augmentation,) for augmentation in (*WITHOUT_WAITING, TrivialAugment())),
    WITHOUT_WAITING,
    (TrivialAugment(), *WITHOUT_WAITING),
)
any_augmentation = pytest.mark.parametrize(
    "augmentation",
    COMBINATIONS,
    ids=["+".join(type(one).__name__ for one in several) for several in COMBINATIONS],
)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    layers = (*TINY.layers[:2], LRN("norm1"), *TINY.layers[2:])
    tiny = replace(TINY, layers=layers)
    monkeypatch.setattr(architecture, "ARCHITECTURES", {**architecture.ARCHITECTURES, "tiny": tiny})
    # The operations that a GPU has too: the compiled ones round differently.
    monkeypatch.setattr(cpu, "load_when_worthwhile", lambda values: None)
    # On the pretended GPU, dropout draws from the generator of the CPU.
    monkeypatch.setattr(state, "seed_generators", lambda seed, device: torch.manual_seed(seed))
    # What it multiplies cannot be asked of it.
    monkeypatch.setattr(muon, "multiplies_bfloat16", lambda device: False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # which is faster for so few numbers
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def gpu(monkeypatch):
    # Else weights that are moved to it would lose their numbers.
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    with torch.random.fork_rng(devices=[]), PretendedGpu() as gpu:
        yield gpu
    torch.__future__.set_swap_module_params_on_conversion(before)


def recipe_of(name: str) -> Recipe:
    # The shapes become larger: bytes that become smaller are rounded otherwise by torch on the CPU.
    small = {**SMALL, "image_size": 32, "initialization": "kaiming", "epochs": 2}
    return RECIPES[name].overridden({**small, **RUNS[name]})


def run_on(device: str, name: str, precision: str = "float32") -> TrainingRun:
    recipe = recipe_of(name)
    options = replace(QUIET, device=device, precision=precision, memory_format="contiguous")
    loaders = prepare_loaders("shapes", recipe, options=options)
    model = prepare_model(loaders, recipe, options=options)
    return TrainingRun(recipe, loaders, model, seed=0, options=options)


def loader_of(images, *augmentation, device=GPU, preprocess=None, **options) -> BatchLoader:
    """Batches of 4 in an order of their own, cropped, with an edge."""
    preprocess = preprocess or Preprocess(12, 9, mean=(0.4, 0.5, 0.6), std=(0.25,) * 3, edge=1)
    options = {"batch_size": 4, "shuffle": True, "seed": 3, **options}
    placement = Placement(torch.device(device))
    return BatchLoader(
        images, preprocess, augmentation=augmentation, placement=placement, **options
    )


def on_gpu(data):
    return replace(data, images=data.images.to(GPU), labels=data.labels.to(GPU))


def assert_same_batches(far: BatchLoader, near: BatchLoader) -> None:
    for (images, labels), (expected, classes) in zip(far, near, strict=True):
        assert images.device == labels.device == GPU
        assert torch.equal(images.cpu(), expected)
        assert torch.equal(labels.cpu(), classes)


def traffic_of(gpu: PretendedGpu, batches) -> list[tuple[list[str], list[str]]]:
    """For each batch after the first, what was waited for and what was copied."""
    traffic = []
    for _ in batches:
        traffic.append(([*gpu.waits], [*gpu.copies]))
        gpu.waits.clear()
        gpu.copies.clear()
    assert len(traffic) > 2
    return traffic[1:]


# The steps


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")  # by autocast
@pytest.mark.parametrize("precision", ["float32", "float16"])
@any_recipe
def test_no_step_of_a_recipe_copies_to_a_gpu_or_waits_for_it(gpu, name, precision, monkeypatch):
    # So that LRN takes the way of tensors that are not traced.
    monkeypatch.setattr(cpu, "takes", lambda x: True)
    # Without a GPU, torch casts nothing to float16, and scales gradients only where it is told so.
    monkeypatch.setattr(devices, "DTYPES", {**devices.DTYPES, "float16": torch.float32})
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    run = run_on(str(GPU), name, precision)
    assert run.scaler.is_enabled() == (precision == "float16")
    for _ in range(2):
        run.take_step()
        gpu.waits.clear()
        steps = 1
        while not run.epoch_read:
            run.take_step()
            assert (gpu.waits, gpu.copies) == ([], []), f"step {steps}"
            steps += 1
        assert steps > 1
        run.finish_epoch()
    assert run.finished


def test_loggers_wait_for_a_gpu_only_where_a_loss_is_read(gpu, monkeypatch):
    class Logger:
        def log_metrics(self, metrics, step):
            read.append(step)

        log_hyperparams = finalize = lambda *arguments: None

    monkeypatch.setattr(loggers, "STEPS_BETWEEN_LOSSES", 3)
    run, log, read, waited = run_on(str(GPU), "modern"), loggers.RunLog([Logger()]), [], []
    log.begin(run, {})
    run.take_step()
    log.step(run)
    while not run.epoch_read:
        run.take_step()
        gpu.waits.clear()
        log.step(run)
        assert gpu.copies == []
        if gpu.waits:
            waited.append(run.steps_done)
    assert waited == read == [3]


@any_recipe
def test_a_run_on_a_gpu_is_that_on_the_cpu(gpu, name):
    runs = run_on("cpu", name), run_on(str(GPU), name)
    for run in runs:
        while not run.finished:
            while not run.epoch_read:
                run.take_step()
            run.finish_epoch()
    assert all(p.device == GPU for p in runs[1].result.parameters())
    near, far = (weights_of(run.result) for run in runs)
    torch.testing.assert_close(far.cpu(), near, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("precision", devices.DTYPES)
@any_recipe
def test_a_whole_run_trains_and_on_cuda_no_step_waits(device, name, precision, monkeypatch):
    monkeypatch.setattr(state, "seed_generators", devices.seed_generators)
    monkeypatch.setattr(muon, "multiplies_bfloat16", devices.multiplies_bfloat16)
    run = run_on(str(device), name, precision)
    before = weights_of(run.model)
    watched = device.type == "cuda"
    for _ in range(2):
        run.take_step()
        if watched:
            torch.cuda.set_sync_debug_mode("error")
        try:
            while not run.epoch_read:
                run.take_step()
        finally:
            if watched:
                torch.cuda.set_sync_debug_mode("default")
        run.finish_epoch()
    after = weights_of(run.model)
    assert after.device == device
    assert after.isfinite().all()
    assert not torch.equal(after, before)


SGDS = {  # and whether the first step waits
    "no momentum": ({}, False),
    "momentum": ({"momentum": 0.9, "nesterov": True}, False),
    "dampening": ({"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}, True),
}


@pytest.mark.filterwarnings("ignore:[12] of 5 steps were skipped")
@pytest.mark.parametrize(("settings", "waits"), SGDS.values(), ids=[*SGDS])
@pytest.mark.parametrize("bad", [(), (0,), (0, 2)], ids=["all taken", "all but the first", "three"])
def test_the_steps_of_a_users_sgd_are_those_on_the_cpu(gpu, settings, waits, bad, monkeypatch):
    monkeypatch.setattr(loop, "_REFRESH_SECONDS", math.inf)
    waited, weights = [], []

    def batches(device):
        for i in range(5):
            images = torch.full((4, 3), math.inf) if i in bad else torch.randn(4, 3)
            batch = images.to(device), (torch.arange(4) % 2).to(device)
            gpu.waits.clear()
            yield batch
            waited.append(bool(gpu.waits))

    for device in ("cpu", GPU):
        torch.manual_seed(0)
        model = nn.Linear(3, 2).to(device)
        optimizer = SGD(model.parameters(), lr=0.1, fused=True, **settings)
        train_one_epoch(model, batches(device), optimizer, on_nonfinite="skip", progress=False)
        weights.append(model.weight.detach().cpu())
    torch.testing.assert_close(*weights)
    # The momentum begins with the first step that is taken.
    assert waited[5:] == [waits and i <= len(bad[:1]) for i in range(5)]


@pytest.mark.parametrize("views", [1, 2, 10])
def test_no_batch_of_an_evaluation_waits_for_a_gpu(gpu, views):
    run = run_on(str(GPU), "paper")
    waits = []
    for batch_size in (3, 10):  # of 20 images
        gpu.waits.clear()
        loader = replace(run.loaders.test, batch_size=batch_size)
        evaluate(run.model, loader, views=views, progress=False)
        waits.append([*gpu.waits])
    assert waits[0] == waits[1] != []
    assert gpu.copies == []


# The batches


@any_augmentation
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_batches_on_a_gpu_are_those_on_the_cpu(gpu, augmentation, memory_format):
    data = in_memory(random_batch(10, 8, 8))
    for images in (on_gpu(data), data):
        near = loader_of(data, *augmentation, device="cpu")
        far = loader_of(images, *augmentation)
        far = replace(far, placement=replace(far.placement, memory_format=memory_format))
        assert next(iter(far))[0].is_contiguous(memory_format=memory_format)
        assert_same_batches(far, near)


@pytest.mark.parametrize("size", [(8, 8), (8, 10), (16, 16), (16, 20), (60, 8)])
@pytest.mark.parametrize("image_fit", ["crop", "squash"])
def test_images_of_any_shape_are_resized_on_a_gpu_without_waiting(gpu, size, image_fit):
    data = in_memory(random_batch(14, *size))
    preprocess = Preprocess(12, 9, image_fit, mean=(0.5,) * 3, std=(0.25,) * 3)
    near, far = (
        loader_of(images, RandomCrop(), device=device, preprocess=preprocess)
        for images, device in ((data, "cpu"), (on_gpu(data), GPU))
    )
    assert traffic_of(gpu, far) == [([], [])] * 3
    near.set_epoch(1)
    # Images that shrink are rounded to levels of 255, torch's on the CPU in another way.
    for (images, _), (expected, _) in zip(far, near, strict=True):
        torch.testing.assert_close(images.cpu(), expected, rtol=0, atol=4.1 / 255)


@any_augmentation
@pytest.mark.parametrize("options", [{}, {"balanced": True}, {"shuffle": False}])
def test_no_batch_of_images_in_memory_waits_for_a_gpu(gpu, augmentation, options):
    loader = loader_of(on_gpu(in_memory(random_batch(14, 8, 8))), *augmentation, **options)
    traffic = traffic_of(gpu, loader)
    if any(isinstance(one, TrivialAugment) for one in augmentation):  # as it says
        assert all(waits for waits, _ in traffic)
    else:
        assert traffic == [([], [])] * 3


def test_an_augmentation_of_a_user_has_its_draws_on_the_gpu(gpu):
    data = in_memory(random_batch(14, 8, 8))
    near, far = loader_of(data, Fade(), device="cpu"), loader_of(on_gpu(data), Fade())
    assert traffic_of(gpu, far) == [([], [])] * 3
    near.set_epoch(1)
    assert_same_batches(far, near)


COPY, PIN = "aten._to_copy.default", "aten._pin_memory.default"


def test_a_batch_of_files_is_one_copy_that_nothing_waits_for(gpu, tmp_path):
    write_class_folders(tmp_path, count=7, size=(40, 300))  # too large to be kept in memory
    data = open_parts(tmp_path).train
    loader = loader_of(data, HorizontalFlip(), RandomCrop(), Fade())
    assert traffic_of(gpu, loader) == [([], [COPY])] * 3  # they are read into pinned memory


@pytest.mark.parametrize(
    ("sizes", "copies"),
    [([(8, 8)], [1, 1, 1]), ([(8, 8), (10, 9)], [4, 4, 2])],
    ids=["of one size", "of two sizes"],
)
def test_no_batch_of_a_data_set_waits_for_a_gpu(gpu, sizes, copies):
    images = [random_batch(1, *sizes[i % len(sizes)], seed=i)[0] for i in range(14)]
    data = replace(read_lazily(random_batch(14, 8, 8)), dataset=Items([(x, 0) for x in images]))
    loader = loader_of(data, HorizontalFlip(), RandomCrop())
    assert traffic_of(gpu, loader) == [([], [PIN, COPY] * count) for count in copies]


def test_files_that_cannot_be_read_are_left_out_on_a_gpu_as_on_the_cpu(gpu, tmp_path):
    write_class_folders(tmp_path, count=7, size=(40, 300))
    data = open_parts(tmp_path).train
    for number in (0, 5):
        data.files[number].write_bytes(b"no image")
    options = {"on_bad_image": "skip", "bad_image_limit": 1.0}
    near, far = (
        loader_of(data, HorizontalFlip(), RandomCrop(), device=device, **options)
        for device in ("cpu", GPU)
    )
    with pytest.warns(UserWarning, match="cannot be read and is left out"):
        assert_same_batches(far, near)
    assert len(far.bad_images) == 2


# The pretended GPU itself

NUMBERS = torch.tensor([3.0, 0.0, 1.0])
WAITING = {
    "item": lambda x, i: x[0].item(),
    "truth": lambda x, i: bool(x[0]),
    "list": lambda x, i: x.tolist(),
    "to the CPU": lambda x, i: x.cpu(),
    "into the CPU": lambda x, i: torch.zeros(3).copy_(x),
    "from the CPU": lambda x, i: NUMBERS.to(GPU),
    "from unpinned memory": lambda x, i: NUMBERS.to(GPU, non_blocking=True),
    "blocking": lambda x, i: NUMBERS.pin_memory().to(GPU),
    "new": lambda x, i: torch.tensor([1.0], device=GPU),
    "new of its kind": lambda x, i: x.new_tensor([1.0]),
    "index": lambda x, i: x[i],
    "list as index": lambda x, i: x[[0, 1]],
    "mask": lambda x, i: x[x > 0],
    "set by mask": lambda x, i: x.__setitem__(x > 0, 0),
    "nonzero": lambda x, i: x.nonzero(),
    "equal": lambda x, i: torch.equal(x, x),
    "unique": lambda x, i: x.unique(),
    "bincount": lambda x, i: x.long().bincount(),
    "number of the CPU": lambda x, i: x + NUMBERS[0],
}
CALM = {
    "arithmetic": lambda x, i: 2 * x + x.sum(),
    "where": lambda x, i: torch.where(x > 0, 0, x),
    "index": lambda x, i: x[torch.arange(2, device=GPU)],
    "slice": lambda x, i: x[1:].zero_(),
    "new": lambda x, i: torch.zeros(3, device=GPU),
    "cast": lambda x, i: x.to(GPU, torch.float64),
    "fill": lambda x, i: x.masked_fill(x > 0, 0),
    "pinned": lambda x, i: NUMBERS.pin_memory().to(GPU, non_blocking=True),
    "on the CPU": lambda x, i: NUMBERS.nonzero().tolist(),
}


@pytest.mark.parametrize(
    ("act", "waits"),
    [*((act, True) for act in WAITING.values()), *((act, False) for act in CALM.values())],
    ids=[*(f"waits: {name}" for name in WAITING), *(f"does not: {name}" for name in CALM)],
)
def test_the_pretended_gpu_notes_what_waits(gpu, act, waits):
    numbers, indices = NUMBERS.to(GPU), torch.tensor([0, 1])
    gpu.waits.clear()
    act(numbers, indices)
    assert bool(gpu.waits) == waits
