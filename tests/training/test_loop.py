"""The promises of a pass: means over images, with anybody's loader, with anybody's model."""

import io
import json
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import repeated, tolerance
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.models import squeezenet1_1
from tqdm import tqdm

from alexnet_lib import devices, interrupts, predict
from alexnet_lib.data.augmentation import HorizontalFlip, RandomCrop, RandomShift
from alexnet_lib.data.images import ImageTensors
from alexnet_lib.data.loaders import BatchLoader, build_loaders
from alexnet_lib.data.preprocess import Preprocess
from alexnet_lib.devices import Placement
from alexnet_lib.network.model import AlexNet
from alexnet_lib.training import batches as batches_module
from alexnet_lib.training import loop, step
from alexnet_lib.training.loop import evaluate, evaluation_mode, train_one_epoch
from alexnet_lib.training.metrics import EvalMetrics, Totals

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def the_same_weights_in_every_run():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def linear_model(classes: int = 3, *, device: torch.device = CPU) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, classes)).to(device)


def pixel_model(device: torch.device) -> nn.Module:
    """For the images 6x6 of ``library_loader``."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, 3)).to(device)


@torch.no_grad()
def outputs(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """On the CPU, of the model wherever it is."""
    return model(images.to(next(model.parameters()).device)).cpu()


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr)


def random_batches(count: int = 10, classes: int = 3, batch_size: int = 4) -> DataLoader:
    """Random images 2x2 and labels; 10 of them make batches of 4, 4 and 2."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, 2, 2, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    return DataLoader(TensorDataset(images, labels), batch_size)


def scored(logits: torch.Tensor, labels: torch.Tensor, batch_size: int = 4, **options):
    """What ``evaluate`` makes of these logits, of a model that gives its input back."""
    loader = DataLoader(TensorDataset(logits, labels), batch_size)
    return evaluate(nn.Identity(), loader, progress=False, **{"device": CPU, **options})


# train_one_epoch


def test_training_loss_and_accuracy_are_means_over_images_not_over_batches(device):
    model, loader = linear_model(device=device), random_batches()
    images, labels = loader.dataset.tensors
    logits = outputs(model, images)
    # With a learning rate of 0 all batches meet the same weights.
    metrics = train_one_epoch(model, loader, sgd(model, lr=0), progress=False)
    assert metrics.loss == pytest.approx(
        F.cross_entropy(logits, labels).item(), rel=tolerance(device, 1e-6, 1e-5)
    )
    assert metrics.accuracy == (logits.argmax(1) == labels).sum().item() / 10
    assert metrics.images == 10


def test_training_takes_the_steps_of_the_plain_loop(device):
    model, plain, loader = (
        linear_model(device=device),
        linear_model(device=device),
        random_batches(),
    )
    plain.load_state_dict(model.state_dict())
    optimizer = sgd(plain)
    for images, labels in loader:
        optimizer.zero_grad()
        F.cross_entropy(plain(images.to(device)), labels.to(device)).backward()
        optimizer.step()
    train_one_epoch(model, loader, sgd(model), progress=False)
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), **repeated(device))


def test_training_learns_a_separable_problem(device):
    labels = torch.arange(60) % 3
    images = 0.1 * torch.randn(60, 3, 2, 2) + F.one_hot(labels)[:, :, None, None]
    loader = DataLoader(TensorDataset(images, labels), batch_size=8)
    model = linear_model(device=device)
    optimizer = sgd(model)
    for _ in range(20):
        train_one_epoch(model, loader, optimizer, progress=False)
    assert evaluate(model, loader, progress=False).accuracy == 1


def test_training_puts_the_model_into_training_mode(device):
    model = linear_model(device=device).eval()
    train_one_epoch(model, random_batches(), sgd(model), progress=False)
    assert model.training


def test_the_batch_scheduler_is_stepped_once_a_batch(device):
    model = linear_model(device=device)
    optimizer = sgd(model, lr=1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    train_one_epoch(model, random_batches(), optimizer, batch_scheduler=schedule, progress=False)
    assert optimizer.param_groups[0]["lr"] == 0.5**3


def test_gradients_above_max_grad_norm_are_scaled_down_to_it(device):
    model, loader = linear_model(device=device), random_batches(4)
    before = nn.utils.parameters_to_vector(model.parameters()).detach()
    train_one_epoch(model, loader, sgd(model, lr=1), max_grad_norm=1e-3, progress=False)
    step = nn.utils.parameters_to_vector(model.parameters()).detach() - before
    assert step.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_gradients_below_max_grad_norm_are_left_alone(device):
    steps = []
    for max_grad_norm in (None, 1e3):
        torch.manual_seed(0)
        model = linear_model(device=device)
        train_one_epoch(
            model, random_batches(), sgd(model), max_grad_norm=max_grad_norm, progress=False
        )
        steps.append(nn.utils.parameters_to_vector(model.parameters()))
    torch.testing.assert_close(*steps, **repeated(device))


def test_a_criterion_takes_the_place_of_cross_entropy(device):
    def constant(logits, labels):
        return 0 * logits.sum() + 2.5

    model, loader = linear_model(device=device), random_batches()
    trained = train_one_epoch(model, loader, sgd(model), criterion=constant, progress=False)
    assert trained.loss == 2.5
    assert evaluate(model, loader, criterion=constant, progress=False).loss == 2.5


def test_a_models_own_class_weights_in_the_criterion_reach_the_gradients(device):
    model, loader = linear_model(device=device), random_batches(4)
    images, labels = next(iter(loader))
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.1], device=device))
    criterion(model(images.to(device)), labels.to(device)).backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    train_one_epoch(model, loader, sgd(model, lr=0), criterion=criterion, progress=False)
    torch.testing.assert_close([parameter.grad for parameter in model.parameters()], expected)


def test_training_and_evaluation_work_with_a_model_of_torchvisions(device):
    loader = DataLoader(TensorDataset(torch.rand(4, 3, 32, 32), torch.arange(4)), 2)
    model = squeezenet1_1(num_classes=4).to(device)
    assert train_one_epoch(model, loader, sgd(model), progress=False).images == 4
    assert evaluate(model, loader, progress=False).confusion.sum() == 4


def test_a_loader_needs_no_length_and_may_yield_lists(device):
    model = linear_model(device=device)
    batches = [list(batch) for batch in random_batches()]
    assert train_one_epoch(model, iter(batches), sgd(model), progress=False).images == 10
    assert evaluate(model, iter(batches), progress=False).images == 10


def test_a_loader_that_changes_its_images_can_be_trained_with(device):
    loader = replace(library_loader(), augmentation=(RandomShift(), HorizontalFlip()))
    model = pixel_model(device)
    metrics = train_one_epoch(model, loader, sgd(model), progress=False)
    assert metrics.images == 10
    assert np.isfinite(metrics.loss)


# Labels that are shares of the classes


def share_batches(count: int = 10, batch_size: int = 4) -> DataLoader:
    """The images of ``random_batches``, each of all three classes to some degree."""
    images, _ = random_batches(count).dataset.tensors
    generator = torch.Generator().manual_seed(2)
    shares = torch.randn(count, 3, generator=generator).softmax(1)
    return DataLoader(TensorDataset(images, shares), batch_size)


def test_shares_of_the_classes_are_trained_on_as_the_plain_loop_does(device):
    model, plain, loader = linear_model(device=device), linear_model(device=device), share_batches()
    plain.load_state_dict(model.state_dict())
    optimizer = sgd(plain)
    for images, shares in loader:
        optimizer.zero_grad()
        F.cross_entropy(plain(images.to(device)), shares.to(device)).backward()
        optimizer.step()
    train_one_epoch(model, loader, sgd(model), progress=False)
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), **repeated(device))


def test_with_shares_an_image_is_recognised_by_its_largest(device):
    model, loader = linear_model(device=device), share_batches(40)
    images, shares = loader.dataset.tensors
    logits = outputs(model, images)
    metrics = train_one_epoch(model, loader, sgd(model, lr=0), progress=False)
    assert metrics.accuracy == (logits.argmax(1) == shares.argmax(1)).sum().item() / 40
    assert metrics.loss == pytest.approx(
        F.cross_entropy(logits, shares).item(), rel=tolerance(device, 1e-6, 1e-5)
    )
    assert metrics.images == 40


def test_whole_shares_are_as_good_as_labels(device):
    model, loader = linear_model(device=device), random_batches()
    images, labels = loader.dataset.tensors
    whole = DataLoader(TensorDataset(images, F.one_hot(labels, 3).float()), 4)
    one, other = (
        train_one_epoch(model, each, sgd(model, lr=0), progress=False) for each in (loader, whole)
    )
    assert other.loss == pytest.approx(one.loss, rel=tolerance(device, 1e-6, 1e-5))
    assert other.accuracy == one.accuracy


# evaluate


@settings(max_examples=30)
@given(
    count=st.integers(1, 20),
    classes=st.integers(2, 7),
    k=st.integers(1, 7),
    seed=st.integers(0, 2**32 - 1),
)
def test_evaluation_gives_the_numbers_of_scikit_learn(device, count, classes, k, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    metrics = scored(logits, labels, topk=(k,), device=device)
    names = np.arange(classes)
    probabilities = logits.double().softmax(1).numpy()
    predicted = logits.argmax(1)
    assert metrics.images == count
    assert metrics.loss == pytest.approx(sk.log_loss(labels, probabilities, labels=names), rel=1e-5)
    assert metrics.accuracy == pytest.approx(sk.accuracy_score(labels, predicted))
    confusion = sk.confusion_matrix(labels, predicted, labels=names)
    assert (metrics.confusion == confusion).all()
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(
            metrics.per_class_accuracy, confusion.diagonal() / confusion.sum(1)
        )
    # By hand: scikit-learn takes two classes as one score.
    among_k = [
        label in row.argsort()[-k:] for label, row in zip(labels, logits.numpy(), strict=True)
    ]
    expected = {k: pytest.approx(np.mean(among_k))} if k <= classes else {}
    assert metrics.topk_accuracy == expected


def test_rows_of_the_confusion_are_the_true_classes(device):
    logits = F.one_hot(torch.tensor([2, 2, 0]), 3).float()
    metrics = scored(logits, torch.tensor([0, 0, 1]), device=device)
    assert metrics.confusion.tolist() == [[0, 0, 2], [1, 0, 0], [0, 0, 0]]


def test_a_k_above_the_number_of_classes_is_dropped(device):
    metrics = scored(torch.eye(3), torch.arange(3), topk=(1, 3, 5), device=device)
    assert metrics.topk_accuracy == {1: 1.0, 3: 1.0}


def test_a_class_without_images_is_nan_and_none_in_json(device):
    metrics = scored(torch.eye(3)[:2], torch.arange(2), device=device)
    np.testing.assert_array_equal(metrics.per_class_accuracy, [1, 1, np.nan])
    data = json.loads(json.dumps(metrics.to_dict(), allow_nan=False))
    assert data["per_class_accuracy"] == {"0": 1.0, "1": 1.0, "2": None}
    assert data["confusion"] == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


# Several views


def library_loader(resize: int = 8, edge: int = 0, **options) -> BatchLoader:
    """Ten images 8x8 of three classes, of which the network sees 6x6 pixels."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (10, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.randint(3, (10,), generator=generator)
    data = ImageTensors(images, labels, ("ape", "bee", "cat"))
    preprocess = Preprocess(resize, 6, mean=(0.5,) * 3, std=(0.25,) * 3, edge=edge)
    return BatchLoader(data, preprocess, **{"batch_size": 4, **options})


def assert_scores(metrics: EvalMetrics, shares: list, labels: torch.Tensor) -> None:
    """Metrics are those of the mean of these views' probabilities."""
    mean = torch.stack(shares).double().mean(0)
    assert metrics.loss == pytest.approx(F.nll_loss(mean.log(), labels).item(), rel=1e-5)
    confusion = sk.confusion_matrix(labels, mean.argmax(1), labels=np.arange(mean.shape[1]))
    assert (metrics.confusion == confusion).all()
    assert metrics.accuracy == pytest.approx((mean.argmax(1) == labels).double().mean().item())
    assert metrics.images == len(labels)


@pytest.mark.parametrize("kind", [lambda loader: loader, list, lambda loader: iter(list(loader))])
def test_two_views_with_anybodys_loader_are_the_mean_of_images_and_mirrored_images(device, kind):
    model, loader = linear_model(device=device), random_batches(30)
    images, labels = loader.dataset.tensors
    shares = [outputs(model, views).softmax(1) for views in (images, images.flip(-1))]
    metrics = evaluate(model, kind(loader), views=2, progress=False)
    assert_scores(metrics, shares, labels)
    assert metrics.loss != pytest.approx(evaluate(model, list(loader), progress=False).loss)


@pytest.mark.parametrize("edge", [0, 1])
def test_two_views_of_a_librarys_loader_mirror_the_picture_and_not_its_edge(device, edge):
    # Without a margin, so that an image mirrored before the crop is the view mirrored.
    loader = library_loader(resize=6 - edge, edge=edge)
    model = pixel_model(device)
    images, mirrored = (
        torch.cat([images for images, _ in each])
        for each in (loader, replace(loader, augmentation=(HorizontalFlip(probability=1.0),)))
    )
    shares = [outputs(model, views).softmax(1) for views in (images, mirrored)]
    metrics = evaluate(model, loader, views=2, progress=False)
    assert_scores(metrics, shares, loader.dataset.labels)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_ten_views_are_the_mean_over_corners_and_centre_and_their_mirror_images(
    device, memory_format
):
    loader = library_loader(placement=Placement(memory_format=memory_format))
    model = pixel_model(device)
    whole = (loader.dataset.images / 255 - 0.5) / 0.25
    shares = []
    for top, left in ((0, 0), (0, 2), (2, 0), (2, 2), (1, 1)):
        picture = whole[..., top : top + 6, left : left + 6]
        shares += [outputs(model, view).softmax(1) for view in (picture, picture.flip(-1))]
    metrics = evaluate(model, loader, views=10, progress=False)
    assert_scores(metrics, shares, loader.dataset.labels)
    assert metrics.classes == ("ape", "bee", "cat")


@pytest.mark.parametrize("views", [1, 2, 10])
def test_a_model_sees_each_batch_as_often_as_there_are_views(device, views):
    seen = []

    class Witness(nn.Module):
        def forward(self, images):
            seen.append(tuple(images.shape))
            return images.flatten(1)[:, :3]

    evaluate(Witness(), library_loader(), views=views, progress=False, device=device)
    assert seen == [(count, 3, 6, 6) for count in (4, 4, 2) for _ in range(views)]


def test_views_of_a_loader_that_crops_at_random_are_those_of_the_whole_image(device):
    model = pixel_model(device)
    cropping = library_loader(augmentation=(RandomCrop(),))
    one, other = (
        evaluate(model, loader, views=10, progress=False) for loader in (cropping, library_loader())
    )
    assert one.loss == other.loss


def test_a_class_that_no_view_believes_in_has_a_finite_loss(device):
    certain = torch.tensor([[1000.0, 0.0, 0.0]])
    loader = [(certain, torch.tensor([1]))]

    class Same(nn.Module):
        def forward(self, images):
            return certain.to(images.device)

    metrics = evaluate(Same(), loader, views=2, progress=False, device=device)
    assert np.isfinite(metrics.loss)
    assert metrics.loss > 80


def mixed_modes(device: torch.device) -> nn.Module:
    """A model with a frozen module, as in fine-tuning."""
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Dropout(), nn.Linear(12, 3))
    model[1].eval()
    return model.to(device)


def test_evaluation_leaves_every_module_in_the_mode_it_came_in(device):
    model = mixed_modes(device)
    modes = [module.training for module in model.modules()]
    evaluate(model, random_batches(), progress=False)
    assert [module.training for module in model.modules()] == modes


def test_evaluation_leaves_every_module_in_its_mode_also_when_it_fails(device):
    def fails(logits, labels):
        raise RuntimeError("no loss today")

    model = mixed_modes(device)
    modes = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="no loss today"):
        evaluate(model, random_batches(), criterion=fails, progress=False)
    assert [module.training for module in model.modules()] == modes


def test_evaluation_is_in_evaluation_mode_and_records_no_gradients(device):
    class Witness(nn.Module):
        def forward(self, logits):
            assert not self.training
            assert not torch.is_grad_enabled()
            return logits

    model = nn.Sequential(linear_model(device=device), Witness())
    assert evaluate(model, random_batches(), progress=False).images == 10


def test_a_model_that_makes_its_state_in_the_first_pass_can_be_trained_after_an_evaluation(device):
    class Table(nn.Module):
        def forward(self, logits):
            if not hasattr(self, "table"):
                self.table = torch.ones(3, device=logits.device)
            return logits * self.table

    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(3), Table()).to(device)
    evaluate(model, random_batches(), progress=False)
    assert train_one_epoch(model, random_batches(), sgd(model), progress=False).images == 10


class KeepingImages(Dataset):
    """Makes each batch, of one image, when it is first asked for."""

    def __init__(self):
        self.kept = {}

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index not in self.kept:
            self.kept[index] = torch.full((1, 3, 2, 2), index / 4), torch.tensor([index % 3])
        return self.kept[index]


def test_images_that_were_made_and_kept_in_an_evaluation_can_be_trained_with(device):
    model, loader = linear_model(device=device), DataLoader(KeepingImages(), batch_size=None)
    evaluate(model, loader, progress=False)
    assert train_one_epoch(model, loader, sgd(model), progress=False).images == 4


def test_class_names_are_the_models_then_the_data_sets_then_numbers(device):
    model, loader = linear_model(device=device), random_batches()
    assert evaluate(model, loader, progress=False).classes == ("0", "1", "2")
    loader.dataset.classes = ["ape", "bee", "cat"]
    assert evaluate(model, loader, progress=False).classes == ("ape", "bee", "cat")
    del loader.dataset.classes
    model.classes = ("ant", "bat", "cow")
    assert evaluate(model, loader, progress=False).classes == ("ant", "bat", "cow")


# Precision and device


def logit_dtypes(precision: str, device: torch.device) -> set[torch.dtype]:
    """The logits' dtypes in training and in evaluation."""
    dtypes = set()

    def criterion(logits, labels):
        dtypes.add(logits.dtype)
        return F.cross_entropy(logits, labels)

    model, loader = linear_model(device=device), random_batches()
    options = {"criterion": criterion, "precision": precision, "progress": False}
    train_one_epoch(model, loader, sgd(model), **options)
    evaluate(model, loader, **options)
    return dtypes


def test_float32_is_the_default_and_bfloat16_autocasts(device):
    assert logit_dtypes("float32", device) == {torch.float32}
    assert logit_dtypes("bfloat16", device) == {torch.bfloat16}


def test_bfloat16_leaves_the_weights_in_float32(device):
    model = linear_model(device=device)
    train_one_epoch(model, random_batches(), sgd(model), precision="bfloat16", progress=False)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(("able", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_auto_precision_is_bfloat16_where_the_hardware_multiplies_it(
    device, monkeypatch, able, dtype
):
    monkeypatch.setattr(devices, "multiplies_bfloat16", lambda device: able)
    assert logit_dtypes("auto", device) == {dtype}


def waits(monkeypatch, run, count: int) -> int:
    """How often a pass over ``count`` batches reads a number off a tensor."""
    batches = list(random_batches(4 * count))
    reads = []

    def counted(method):
        def read(*args, **kwargs):
            reads.append(method)
            return method(*args, **kwargs)

        return read

    with monkeypatch.context() as patch:
        # Only what is on the CPU is looked at, for which nothing waits.
        patch.setattr(batches_module, "_look", lambda labels: (None, None))
        patch.setattr(step, "_is_read", lambda device: False)
        for name in ("item", "tolist", "cpu", "numpy", "nonzero"):
            patch.setattr(torch.Tensor, name, counted(getattr(torch.Tensor, name)))
        for name in ("__bool__", "__int__", "__float__", "__index__"):
            patch.setattr(torch.Tensor, name, counted(getattr(torch.Tensor, name)))
        run(batches)
    return len(reads)


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_no_step_of_training_waits_for_the_device(
    monkeypatch, max_grad_norm, on_nonfinite, precision
):
    def run(batches):
        model = linear_model()
        train_one_epoch(
            model,
            batches,
            torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, fused=True),
            precision=precision,
            max_grad_norm=max_grad_norm,
            on_nonfinite=on_nonfinite,
            progress=False,
        )

    assert 0 < waits(monkeypatch, run, 1) == waits(monkeypatch, run, 7)


def test_with_an_optimizer_that_is_not_fused_each_step_waits_once(monkeypatch):
    model = linear_model()

    def run(batches):
        train_one_epoch(model, batches, sgd(model), max_grad_norm=1.0, progress=False)

    assert waits(monkeypatch, run, 7) == waits(monkeypatch, run, 1) + 6


def test_no_step_of_training_on_shares_waits_for_the_device(monkeypatch):
    model = linear_model()

    def run(batches):
        shared = [(images, F.one_hot(labels, 3).float()) for images, labels in batches]
        optimizer = torch.optim.SGD(model.parameters(), 0.1, fused=True)
        train_one_epoch(model, shared, optimizer, progress=False)

    # Making one-hot labels of a known number of classes looks at none.
    assert 0 < waits(monkeypatch, run, 1) == waits(monkeypatch, run, 7)


@pytest.mark.parametrize("views", [1, 2])
def test_no_step_of_an_evaluation_waits_for_the_device(monkeypatch, views):
    def run(batches):
        evaluate(linear_model(), batches, views=views, progress=False)

    assert 0 < waits(monkeypatch, run, 1) == waits(monkeypatch, run, 7)


# What is said


@pytest.mark.parametrize("progress", [True, False])
def test_without_a_terminal_nothing_is_said_that_the_caller_would_print_again(
    device, capsys, progress
):
    model, loader = linear_model(device=device), random_batches()
    train_one_epoch(model, loader, sgd(model), progress=progress)
    evaluate(model, loader, progress=progress)
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def fileno(self):
        return 2


@pytest.mark.parametrize("columns", [20, 42, 80, 200])
@pytest.mark.parametrize("epoch", ["epoch 1/1", "epoch 10/10"])
def test_a_bar_with_its_metrics_fits_in_the_terminal(columns, epoch, monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(os, "get_terminal_size", lambda number: os.terminal_size((columns, 24)))
    monkeypatch.setattr(loop, "_REFRESH_SECONDS", -1.0)
    totals = Totals(torch.device("cpu"))
    totals.add(torch.tensor(1.5), torch.ones(10, dtype=torch.bool), 10)
    with loop.Progress("epoch", 20, show=True, done=4) as bar:
        bar.describe(epoch)
        bar.advance(totals)
    line = [part for part in stream.getvalue().split("\r") if part.strip()][-1].rstrip()
    assert len(line) < columns
    assert epoch in line
    if columns == 42 and epoch == "epoch 1/1":
        assert line.endswith("left, loss 1.5000")
    if columns >= 80:
        assert len(re.search(r"\|(.*)\|", line)[1]) >= 5
        assert re.search(r"left, loss 1\.5000, accuracy 100\.0%, [\d.]+ images/s$", line)


class Failing:
    """A bar that cannot be drawn."""

    disable = False

    def __init__(self, **options):
        pass

    def update(self, n=1):
        raise RuntimeError("no terminal today")

    set_postfix_str = close = update


@pytest.mark.parametrize("bar", [Failing, lambda **options: Failing().update()])
def test_a_progress_bar_that_fails_ends_neither_training_nor_evaluation(bar, monkeypatch):
    monkeypatch.setattr(loop, "progress_bar", bar)
    monkeypatch.setattr(loop, "_REFRESH_SECONDS", -1.0)
    model = linear_model()
    assert train_one_epoch(model, random_batches(), sgd(model)).images == 10
    assert evaluate(model, random_batches()).images == 10


class Broken(io.StringIO):
    """The standard error stream after its reader has gone, or on a full disk."""

    def isatty(self):
        return True

    def write(self, text=""):
        raise BrokenPipeError(32, "Broken pipe")

    flush = write


@pytest.mark.parametrize("stream", [None, Broken()])
def test_an_error_stream_that_takes_nothing_ends_neither(stream, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(loop, "_REFRESH_SECONDS", -1.0)
    model = linear_model()
    assert train_one_epoch(model, random_batches(), sgd(model)).images == 10
    assert evaluate(model, random_batches()).images == 10


@pytest.mark.parametrize("number", [0, 1])
def test_a_signal_ends_a_pass_between_two_batches(number, monkeypatch):
    seen = []

    def check():
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(interrupts, "check", check)
    with pytest.raises(KeyboardInterrupt):
        both_passes(random_batches())[number]()
    assert len(seen) == 2


# Several threads


def in_threads(*calls):
    """Runs the calls at the same time; their results."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(60) for future in [pool.submit(call) for call in calls]]


class Meeting(nn.Module):
    """A model in which the threads meet, so that each is inside while the others are."""

    def __init__(self, meet):
        super().__init__()
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Dropout(0.5))
        self.meet = meet

    def forward(self, images):
        self.meet()
        assert not any(module.training for module in self.modules())
        return self.inner(images)


def test_an_evaluation_that_ends_first_leaves_the_mode_of_another(device):
    first_done, second_inside = threading.Event(), threading.Event()
    first_alone = threading.Lock()

    def meet():
        if first_alone.acquire(blocking=False):  # the first to come ends first
            assert second_inside.wait(30)
        else:
            second_inside.set()
            assert first_done.wait(30)

    def run():
        metrics = evaluate(model, batches, progress=False)
        first_done.set()
        return metrics

    model, batches = Meeting(meet).to(device), [*random_batches(4)]
    model.inner[1].eval()
    modes = [module.training for module in model.modules()]
    metrics = in_threads(run, run)
    assert metrics[0].loss == metrics[1].loss
    assert [module.training for module in model.modules()] == modes
    assert not loop._evaluated


def test_many_evaluations_and_predictions_at_once_give_what_one_gives_alone(device):
    barrier = threading.Barrier(6, timeout=30)
    images, labels = torch.rand(12, 3, 2, 2), torch.arange(12) % 3
    loader = DataLoader(TensorDataset(images, labels), 12)
    alone = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Dropout(0.5)).to(device)
    model = Meeting(barrier.wait).to(device)
    model.inner.load_state_dict(alone.state_dict())
    expected = evaluate(alone, loader, progress=False).loss, predict(alone, loader)
    found = in_threads(
        *[lambda: evaluate(model, loader, progress=False).loss] * 3,
        *[lambda: predict(model, loader)] * 3,
    )
    assert found == [expected[0]] * 3 + [expected[1]] * 3
    assert all(module.training for module in model.modules())


def test_a_part_of_a_model_is_evaluated_at_the_same_time_as_the_whole():
    model = linear_model()
    with evaluation_mode(model):
        with evaluation_mode(model[1]):
            pass
        assert not model[1].training
    with evaluation_mode(model[1]), evaluation_mode(model):
        pass
    assert all(module.training for module in model.modules())


# Outputs that are not finite


def test_an_evaluation_with_spoiled_weights_names_the_weight(device):
    model = linear_model(device=device)
    nn.init.constant_(model[1].bias, float("nan"))
    message = "are NaN or infinite for 10 of 10 images, the first of them image 0: the weight "
    with pytest.raises(FloatingPointError, match=f"{message}1.bias is NaN or infinite; expected"):
        evaluate(model, random_batches(), progress=False)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("views", [1, 2])
def test_an_evaluation_names_the_images_that_have_no_finite_outputs(device, poison, views):
    batches = [*random_batches(10)]
    batches[1][0][2] = poison
    batches[2][0][1] = poison
    message = "for 2 of 10 images, the first of them image 6: the weights are finite; expected"
    with pytest.raises(FloatingPointError, match=message):
        evaluate(linear_model(device=device), batches, views=views, progress=False)


@pytest.mark.parametrize("half", [False, True])
def test_an_evaluation_that_overflows_in_float16_is_told_the_other_precisions(device, half):
    model = linear_model(device=device)
    nn.init.constant_(model[1].weight, 6e4)
    batches = [(3 * torch.ones(2, 3, 2, 2), torch.tensor([0, 1]))]
    assert evaluate(model, batches, progress=False).images == 2
    options = {} if half else {"precision": "float16"}
    if half:
        model.half()
        batches = [(images.half(), labels) for images, labels in batches]
    with pytest.raises(FloatingPointError, match=r"65504 .* expected precision 'bfloat16' or"):
        evaluate(model, batches, progress=False, **options)


def test_classes_that_are_ruled_out_are_no_fault(device):
    logits = torch.tensor([[1.0, -float("inf"), 0.0], [-float("inf"), 2.0, 0.0]])
    metrics = scored(logits, torch.tensor([0, 2]), device=device)
    assert (metrics.accuracy, metrics.images) == (0.5, 2)
    with pytest.raises(FloatingPointError, match="for 2 of 2 images"):
        scored(logits, torch.tensor([1, 2]), device=device)  # the loss is infinite


def test_what_an_infinite_output_means_is_up_to_another_criterion(device):
    values = torch.tensor([[1.0], [float("inf")]])
    finite = lambda output, target: (output.clamp(max=5) - target).square().mean()
    metrics = scored(values, torch.zeros(2, 1), criterion=finite, device=device)
    assert metrics.loss == 13.0
    with pytest.raises(FloatingPointError, match="for 2 of 2 images, the first of them image 0"):
        scored(values, torch.zeros(2, 1), criterion=F.mse_loss, device=device)


# Memory


class Greedy(nn.Module):
    """A model that asks for more memory than there is."""

    def __init__(self, raises):
        super().__init__()
        self.inner = linear_model()
        self.raises = raises

    def forward(self, images):
        self.raises()
        return self.inner(images)


def no_memory_on_cuda():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")


def no_memory_on_mps():
    raise RuntimeError("MPS backend out of memory (MPS allocated: 18.00 GB, max allowed: 18.13 GB)")


def no_memory_for_cublas():
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def no_memory_in_python():
    raise MemoryError


@pytest.mark.parametrize(
    ("raises", "reason"),
    [
        (lambda: torch.empty(2**50), r" \(.*DefaultCPUAllocator: .*\)"),
        (no_memory_on_cuda, r" \(CUDA out of memory\. Tried to allocate 2\.00 GiB\.\)"),
        (no_memory_on_mps, r" \(MPS backend out of memory .*\)"),
        (no_memory_for_cublas, r" \(CUDA error: CUBLAS_STATUS_ALLOC_FAILED .*\)"),
        (no_memory_in_python, ""),
    ],
)
def test_where_memory_does_not_suffice_the_batch_and_what_to_lower_is_said(raises, reason):
    train, test = both_passes(random_batches(), Greedy(raises))
    size = "of 4 images of 2x2 pixels: lower"
    advice = r".*batch_size .*accumulation_steps.* image_size, or set precision to 'bfloat16'"
    with pytest.raises(MemoryError, match=f"for a step of training {size}{advice}{reason}$"):
        train()
    with pytest.raises(MemoryError, match=f"for evaluation {size} the batch size .*{reason}$"):
        test()


def test_other_errors_of_a_model_are_left_as_they_are():
    def fails():
        raise RuntimeError("expected 3 channels")

    for run in both_passes(random_batches(), Greedy(fails)):
        with pytest.raises(RuntimeError, match=r"^expected 3 channels$"):
            run()


LIMITED = """
import resource, torch
from torch import nn
from alexnet_lib import train_one_epoch
model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4096), nn.Linear(4096, 3))
batches = [(torch.zeros(2**18, 3, 2, 2), torch.zeros(2**18, dtype=torch.int64))]
resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
try:
    train_one_epoch(model, batches, torch.optim.SGD(model.parameters(), 0.1), progress=False)
except MemoryError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not keep to the limit")
def test_a_process_that_may_have_no_more_memory_says_so():
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True, timeout=120
    )
    expected = "memory does not suffice for a step of training of 262144 images of 2x2 pixels: "
    assert done.stdout.startswith(expected)


# The tutorial's own loops


def tutorial_train(model, device, train_loader, optimizer, criterion):
    model.train()
    running_loss = 0.0
    correct = 0
    total = 0
    for images, labels in tqdm(train_loader):
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        outputs = model(images)
        loss = criterion(outputs, labels)
        loss.backward()
        optimizer.step()
        running_loss += loss.item()
        _, predicted = torch.max(outputs.data, 1)
        total += labels.size(0)
        correct += (predicted == labels).sum().item()
    return running_loss / len(train_loader), 100 * correct / total


def tutorial_test(model, device, test_loader, criterion):
    model.eval()
    running_loss = 0.0
    correct = 0
    total = 0
    with torch.no_grad():
        for images, labels in tqdm(test_loader):
            images, labels = images.to(device), labels.to(device)
            outputs = model(images)
            running_loss += criterion(outputs, labels).item()
            _, predicted = torch.max(outputs.data, 1)
            total += labels.size(0)
            correct += (predicted == labels).sum().item()
    return running_loss / len(test_loader), 100 * correct / total


def test_the_tutorials_training_and_test_functions_run_unchanged(device):
    loaders = build_loaders(
        "shapes", image_size=67, train_images=30, batch_size=9, validation_fraction=0.1
    )
    assert loaders.test is not None
    test_loader = replace(
        loaders.test, dataset=loaders.test.dataset.subset(torch.arange(18)), batch_size=9
    )
    model = AlexNet(num_classes=10, architecture="single_tower", image_size=67, seed=0).to(device)
    before = model.classifier.fc8.weight.detach().clone()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0001, momentum=0.9, weight_decay=0.0005)
    loss, accuracy = tutorial_train(model, device, loaders.train, optimizer, criterion)
    # An untrained network guesses.
    assert loss == pytest.approx(np.log(10), abs=0.5)
    assert 0 <= accuracy <= 100
    assert not torch.equal(model.classifier.fc8.weight, before)
    loss, accuracy = tutorial_test(model, device, test_loader, criterion)
    # Its mean over batches is one over images where all batches are of one size.
    metrics = evaluate(model, test_loader, progress=False)
    assert loss == pytest.approx(metrics.loss, rel=1e-5)
    assert accuracy == pytest.approx(100 * metrics.accuracy)


# Wrong input


@pytest.mark.bad_input
def test_a_loss_function_in_the_optimisers_place_is_told_the_order():
    order = "order is train_one_epoch(model, loader, optimizer, criterion=...)"
    with pytest.raises(TypeError, match=re.escape(order)) as caught:
        train_one_epoch(linear_model(), random_batches(), nn.CrossEntropyLoss(), progress=False)
    assert "optimizer is a torch.nn.modules.loss.CrossEntropyLoss" in str(caught.value)


def both_passes(loader, model=None, **options):
    """The two functions, to be called."""
    model = linear_model() if model is None else model
    optimizer = sgd(model)
    return (
        lambda: train_one_epoch(model, loader, optimizer, progress=False, **options),
        lambda: evaluate(model, loader, progress=False, **options),
    )


@pytest.mark.bad_input
@pytest.mark.parametrize("loader", [[], random_batches(0)])
def test_a_loader_without_batches_is_refused(loader):
    for run in both_passes(loader):
        with pytest.raises(ValueError, match=r"loader yields no images; expected at least one"):
            run()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("batch", "kind"),
    [
        (torch.zeros(2, 3), "torch.Tensor; expected pairs (images, labels)"),
        ((torch.zeros(2, 3),), "tuple of 1; expected pairs (images, labels)"),
        ({"image": 1}, "dict with the keys ['image']; expected pairs (images, labels), or one of"),
        (None, "NoneType; expected pairs (images, labels)"),
    ],
)
def test_a_loader_that_yields_no_pairs_is_refused(batch, kind):
    for run in both_passes([batch]):
        with pytest.raises(ValueError, match=re.escape(f"loader yields a {kind}")):
            run()


@pytest.mark.bad_input
@pytest.mark.parametrize("labels", [[0, 5], [-1, 1]])
def test_labels_that_are_no_classes_of_the_model_are_named_with_its_range(labels):
    model = AlexNet(num_classes=2, image_size=67, seed=0)
    message = f"labels run from {labels[0]} to {labels[1]}, but the model has 2 classes; "
    for run in both_passes([(torch.zeros(2, 3, 67, 67), torch.tensor(labels))], model):
        with pytest.raises(ValueError, match=re.escape(message + "expected 0 to 1")):
            run()


@pytest.mark.bad_input
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_an_error_that_names_its_first_step(device, poison):
    batches = list(random_batches(20))
    batches[2][0][0] = poison
    model = linear_model(device=device)
    with pytest.raises(FloatingPointError, match=r"the loss of step 3 is not finite"):
        train_one_epoch(model, batches, sgd(model), progress=False)


@pytest.mark.bad_input
@pytest.mark.parametrize("topk", [(0,), (1, -5), (1.5,), 5])
def test_a_k_below_one_is_refused(topk):
    text = f"topk is {topk}; expected a sequence of integers of at least 1"
    with pytest.raises(ValueError, match=re.escape(text)):
        evaluate(linear_model(), random_batches(), topk=topk)


@pytest.mark.bad_input
def test_an_unknown_precision_is_told_the_known_ones():
    message = "precision is 'half'; expected one of 'auto', 'float32', 'bfloat16', 'float16'"
    for run in both_passes(random_batches(), precision="half"):
        with pytest.raises(ValueError, match=message):
            run()


@pytest.mark.bad_input
@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_this_machine_has_not_is_refused(device):
    for run in both_passes(random_batches(), device=device):
        with pytest.raises(ValueError, match=f"device is '{device}'; expected 'auto' or a device"):
            run()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "labels",
    [
        torch.zeros(2, 4),
        torch.zeros(2, 1),
        torch.zeros(2),
        torch.zeros(2, 3, 1),
        torch.zeros(2, 3, dtype=torch.int64),
        torch.zeros(2, 1, dtype=torch.int64),
    ],
)
def test_shares_of_another_shape_or_dtype_are_refused_and_told_the_right_one(labels):
    text = (
        f"labels are {labels.dtype} of shape {tuple(labels.shape)}; expected int64 (batch,), or "
        "the share of each class, floating (2, 3)"
    )
    for run in both_passes([(torch.zeros(2, 3, 2, 2), labels)]):
        with pytest.raises(ValueError, match=re.escape(text)):
            run()


@pytest.mark.bad_input
@pytest.mark.parametrize("labels", [torch.zeros(()), torch.zeros((), dtype=torch.int64)])
def test_labels_without_a_dimension_are_refused(labels):
    for run in both_passes([(torch.zeros(2, 3, 2, 2), labels)]):
        with pytest.raises(ValueError, match=r"labels have shape \(\); expected int64 \(batch,\)"):
            run()


@pytest.mark.bad_input
@pytest.mark.parametrize("views", [0, 3, 10])
def test_more_views_than_two_need_a_librarys_loader(views):
    text = f"views is {views}, but loader is a torch.utils.data.dataloader.DataLoader; expected 1"
    with pytest.raises(ValueError, match=text):
        evaluate(linear_model(), random_batches(), views=views, progress=False)


@pytest.mark.bad_input
@pytest.mark.parametrize("views", [0, 3])
def test_another_number_of_views_of_a_librarys_loader_is_refused(views):
    with pytest.raises(ValueError, match=f"views is {views}; expected one of 1, 2, 10"):
        evaluate(nn.Flatten(), library_loader(), views=views, progress=False)


@pytest.mark.bad_input
def test_ten_views_without_a_margin_are_refused():
    with pytest.raises(ValueError, match="views is 10, but resize is 6, the size of the crop"):
        evaluate(nn.Flatten(), library_loader(resize=6), views=10, progress=False)
