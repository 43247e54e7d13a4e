"""The promises about labels: every form of a number, no accuracy without a meaning, names."""

import io
import re
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import in_memory, needs, random_batch, tolerance
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset

from alexnet_lib import BatchLoader, Preprocess
from alexnet_lib.training import batches as batches_module
from alexnet_lib.training import step as step_module
from alexnet_lib.training.loop import evaluate, train_one_epoch
from alexnet_lib.training.metrics import Totals
from alexnet_lib.training.step import TrainingStep

CPU = torch.device("cpu")


def linear_model(classes: int = 3, seed: int = 0, device: torch.device = CPU) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(12, classes)).to(device)


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr)


def images_of(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 2, 2, generator=torch.Generator().manual_seed(1))


def both(loader, model=None, device: torch.device = CPU, **options):
    """The two functions, to be called; the first keeps the weights."""
    model = linear_model(device=device) if model is None else model
    optimizer = sgd(model, lr=0.0)
    return (
        lambda: train_one_epoch(model, loader, optimizer, progress=False, **options),
        lambda: evaluate(model, loader, progress=False, **options),
    )


def assert_same_metrics(found, expected) -> None:
    assert (found.loss, found.accuracy, found.images) == (
        expected.loss,
        expected.accuracy,
        expected.images,
    )
    if hasattr(found, "confusion"):
        np.testing.assert_array_equal(found.confusion, expected.confusion)


# Every form of a number

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_labels_of_every_integer_dtype_are_as_those_of_int64(device, dtype):
    # With 20 classes, the numbers of the confusion matrix's cells do not fit into 8 bits.
    labels = torch.arange(60) % 20
    model = linear_model(20, device=device)
    pairs = zip(
        both([(images_of(60), labels.to(dtype))], model),
        both([(images_of(60), labels)], model),
        strict=True,
    )
    for run, expected in pairs:
        assert_same_metrics(run(), expected())
    found = evaluate(model, [(images_of(60), labels.to(dtype))], progress=False)
    assert found.confusion.sum() == 60


def test_labels_that_are_true_or_false_are_one_and_zero(device):
    labels = torch.arange(8) % 2
    for run, expected in zip(
        both([(images_of(8), labels == 1)], linear_model(2, device=device)),
        both([(images_of(8), labels)], linear_model(2, device=device)),
        strict=True,
    ):
        assert_same_metrics(run(), expected())


def forms(images: torch.Tensor, labels: torch.Tensor) -> dict:
    read_only = images.numpy().copy()
    read_only.flags.writeable = False
    return {
        "lists": (images.tolist(), labels.tolist()),
        "arrays": (images.numpy(), labels.numpy()),
        "float64": (images.double().numpy(), labels.numpy()),
        "read-only": (read_only, labels.numpy().astype(np.int32)),
        "mirrored twice": (images.flip(-1).numpy()[..., ::-1], labels.tolist()),
        "tuples of tensors": (tuple(images), tuple(labels)),
        "lists of arrays": ([*images.numpy()], [*labels.numpy()]),
        "a list": [images, labels.tolist()],
        "image and label": {"image": images, "label": labels},
        "img and labels": {"img": images.numpy(), "labels": labels.numpy(), "id": ["a"]},
        "pixel_values": {"pixel_values": images, "labels": labels.to(torch.uint8)},
    }


@pytest.mark.parametrize("form", forms(images_of(1), torch.zeros(1, dtype=torch.int64)))
def test_batches_may_be_lists_arrays_tensors_or_mappings(device, form):
    images, labels = images_of(6), torch.arange(6) % 3
    model, plain = linear_model(device=device), both([(images, labels)], device=device)
    for run, expected in zip(both([forms(images, labels)[form]], model), plain, strict=True):
        assert_same_metrics(run(), expected())


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (["cat", "dog"], "labels are a list of str"),
        ("cd", "labels are a str"),
        (None, "labels are a NoneType"),
        ([None, 1], "labels are a list of NoneType"),
        (np.array(["cat", "dog"]), "labels are a numpy.ndarray"),
        ([[0], [1, 2]], "labels are a list of list"),
        (torch.zeros(2, dtype=torch.complex64), "labels are torch.complex64"),
    ],
)
def test_labels_that_are_no_numbers_are_named(labels, kind):
    for run in both([(images_of(2), labels)]):
        with pytest.raises(ValueError, match=re.escape(kind) + r".*; expected (numbers|int64)"):
            run()


@pytest.mark.bad_input
@pytest.mark.parametrize("images", [None, "images", ["a.jpg", "b.jpg"]])
def test_images_that_are_no_numbers_are_named(images):
    for run in both([(images, [0, 1])]):
        with pytest.raises(ValueError, match=r"^images are a \w+.*; expected numbers"):
            run()


@pytest.mark.bad_input
def test_another_number_of_labels_than_of_images_is_refused():
    for run in both([(images_of(3), torch.zeros(2, dtype=torch.int64))]):
        with pytest.raises(ValueError, match=r"of shape \(3, 3, 2, 2\) with labels of shape \(2,"):
            run()


@pytest.mark.bad_input
@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64])
@pytest.mark.parametrize("label", [-1, 3])
def test_labels_that_are_no_classes_are_refused_in_every_dtype(dtype, label):
    for run in both([(images_of(2), torch.tensor([0, label]).to(dtype))]):
        with pytest.raises(ValueError, match=r"labels run from .*, but the model has 3 classes"):
            run()


def test_batches_without_images_are_passed_over(device):
    images, labels = images_of(6), torch.arange(6) % 3
    empty = (images[:0], labels[:0])
    for run, expected in zip(
        both([empty, (images, labels), empty], device=device),
        both([(images, labels)], device=device),
        strict=True,
    ):
        assert_same_metrics(run(), expected())


@pytest.mark.bad_input
@pytest.mark.parametrize("empty", [(torch.zeros(0, 3, 2, 2), torch.zeros(0)), ([], [])])
def test_a_loader_of_empty_batches_has_no_images(empty):
    for run in both([empty]):
        with pytest.raises(ValueError, match="loader yields no images; expected at least one"):
            run()


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(images_of(6), (torch.arange(6) % 3).tolist(), strict=True)


def test_a_loader_over_an_iterable_data_set_has_no_length(device, monkeypatch):
    for run in both(DataLoader(Stream(), 4), device=device):
        assert run().images == 6
    model, terminal = linear_model(device=device), io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    train_one_epoch(model, DataLoader(Stream(), 4), sgd(model))
    assert "training: 0 steps in 00:00" in terminal.getvalue()


# An accuracy only where it has a meaning


def assert_no_accuracy(metrics) -> None:
    assert metrics.accuracy is None
    assert "accuracy" not in str(metrics)
    data = metrics.to_dict()
    assert data["accuracy"] is None
    if "confusion" in data:
        assert (metrics.topk_accuracy, metrics.confusion, metrics.per_class_accuracy) == (
            {},
            None,
            None,
        )
        assert (data["confusion"], data["per_class_accuracy"], data["topk_accuracy"]) == (
            None,
            None,
            {},
        )


def targets_and_criteria() -> dict:
    """Outputs, labels of 8 images, and a criterion."""
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(8, 3, generator=generator)
    return {
        "one logit": (1, (torch.arange(8) % 2).float()[:, None], nn.BCEWithLogitsLoss()),
        "a regression": (1, values[:, :1], nn.MSELoss()),
        "a regression of several values": (3, values, nn.MSELoss()),
        "several labels": (3, (values > 0).float(), nn.BCEWithLogitsLoss()),
        "all labels": (3, torch.ones(8, 3), nn.BCEWithLogitsLoss()),
        "ages": (
            1,
            torch.arange(8.0),
            lambda logits, labels: F.mse_loss(logits[:, 0], labels),
        ),
        "negative rows with the sum 1": (2, torch.tensor([[2.0, -1.0]] * 8), nn.MSELoss()),
        "nan": (2, torch.full((8, 2), float("nan")), lambda logits, labels: logits.sum() * 0),
    }


@pytest.mark.parametrize("case", targets_and_criteria())
@pytest.mark.parametrize("looked", [True, False], ids=["on the CPU", "on a device"])
def test_no_accuracy_is_shown_where_it_has_no_meaning(device, case, looked, monkeypatch):
    if not looked:  # as labels that come on a device
        monkeypatch.setattr(batches_module, "_look", lambda labels: (None, None))
    outputs, labels, criterion = targets_and_criteria()[case]
    model = linear_model(outputs, device=device)
    with torch.no_grad():
        expected = criterion(model(images_of(8).to(device)).cpu(), labels).item()
    batches = [(images_of(8)[:5], labels[:5]), (images_of(8)[5:], labels[5:])]
    for run in both(batches, model, criterion=criterion):
        metrics = run()
        assert_no_accuracy(metrics)
        assert metrics.loss == pytest.approx(expected, rel=1e-5)


def test_each_pixel_of_a_segmentation_is_trained_on_without_an_accuracy(device):
    model = nn.Conv2d(3, 4, 1).to(device)
    labels = torch.arange(16).view(4, 2, 2) % 4
    for run in both([(images_of(4), labels.to(torch.uint8))], model):
        metrics = run()
        assert_no_accuracy(metrics)
        with torch.no_grad():
            assert metrics.loss == pytest.approx(
                F.cross_entropy(model(images_of(4).to(device)).cpu(), labels).item()
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_shares_of_the_classes_have_an_accuracy_in_training_and_evaluation(device, dtype):
    needs(dtype, device)
    shares = torch.randn(30, 3, generator=torch.Generator().manual_seed(3)).softmax(1).to(dtype)
    model = linear_model(device=device)
    with torch.no_grad():
        predicted = model(images_of(30).to(device)).argmax(1).cpu()
    expected = (predicted == shares.argmax(1)).sum().item() / 30
    criterion = lambda logits, labels: F.cross_entropy(logits, labels.float())
    for run in both([(images_of(30), shares)], model, criterion=criterion):
        assert run().accuracy == expected
    confusion = evaluate(model, [(images_of(30), shares.float())], progress=False).confusion
    assert confusion.sum(1).tolist() == shares.argmax(1).bincount(minlength=3).tolist()


@pytest.mark.bad_input
@pytest.mark.parametrize("looked", [True, False], ids=["on the CPU", "on a device"])
@pytest.mark.parametrize("labels", [torch.ones(4, 3), torch.randn(4, 3), torch.zeros(4, 3)])
def test_cross_entropy_refuses_rows_that_are_no_shares(device, labels, looked, monkeypatch):
    if not looked:
        monkeypatch.setattr(batches_module, "_look", lambda labels: (None, None))
    for run in both([(images_of(4), labels)], device=device):
        with pytest.raises(ValueError, match="not all rows are shares of the classes"):
            run()


@pytest.mark.bad_input
def test_cross_entropy_of_one_output_is_refused():
    for labels in (torch.zeros(4, dtype=torch.int64), torch.zeros(4, 1)):
        for run in both([(images_of(4), labels)], linear_model(1)):
            with pytest.raises(ValueError, match=r"logits of shape \(4, 1\), on which cross entr"):
                run()


@pytest.mark.bad_input
def test_several_views_of_images_without_classes_are_refused():
    labels = torch.rand(4, 3)
    message = "views is 2, but the labels are not classes"
    with pytest.raises(ValueError, match=message):
        evaluate(
            linear_model(),
            [(images_of(4), labels)],
            criterion=nn.MSELoss(),
            views=2,
            progress=False,
        )
    with pytest.raises(ValueError, match=r"views is 2, but model returns shape \(4, 1\)"):
        evaluate(
            linear_model(1),
            [(images_of(4), labels[:, :1])],
            criterion=nn.MSELoss(),
            views=2,
            progress=False,
        )


# What models and criteria return


class Returns(nn.Module):
    def __init__(self, change) -> None:
        super().__init__()
        self.inner, self.change = linear_model(), change

    def forward(self, images):
        return self.change(self.inner(images))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits: {"logits": logits}, "model returns a dict; expected a tensor of logits"),
        (lambda logits: (logits, logits), "model returns a tuple; expected a tensor of logits"),
        (lambda logits: None, "model returns a NoneType; expected"),
        (lambda logits: logits.sum(), r"model returns a tensor of shape \(\) for 2 images"),
        (lambda logits: logits[:1], r"model returns a tensor of shape \(1, 3\) for 2 images"),
    ],
)
def test_a_model_that_returns_no_row_for_each_image_is_refused(change, message):
    for run in both([(images_of(2), [0, 1])], Returns(change)):
        with pytest.raises(ValueError, match=message):
            run()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (nn.CrossEntropyLoss(reduction="none"), r"criterion returns shape \(2,\); expected a sca"),
        (lambda logits, labels: 1.0, "criterion returns a float; expected a scalar tensor"),
        (lambda logits, labels: None, "criterion returns a NoneType; expected a scalar tensor"),
    ],
)
def test_a_criterion_that_returns_no_scalar_is_refused(criterion, message):
    for run in both([(images_of(2), [0, 1])], criterion=criterion):
        with pytest.raises(ValueError, match=message):
            run()


@pytest.mark.bad_input
@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss, "mse", 3])
def test_a_criterion_that_is_no_function_is_refused(criterion):
    for run in both([(images_of(2), [0, 1])], criterion=criterion):
        with pytest.raises(TypeError, match=r"criterion is a .*; expected a function"):
            run()


@pytest.mark.bad_input
@pytest.mark.parametrize("model", [None, lambda images: images, nn.Linear])
def test_a_model_that_is_no_module_is_refused(model):
    optimizer = sgd(linear_model())
    for run in (
        lambda: train_one_epoch(model, [], optimizer),
        lambda: evaluate(model, []),
    ):
        with pytest.raises(TypeError, match=r"model is a .*; expected a torch\.nn\.Module"):
            run()


@pytest.mark.bad_input
def test_a_loss_that_depends_on_no_weight_is_refused():
    model = linear_model()
    with pytest.raises(ValueError, match="the loss does not depend on any weight"):
        train_one_epoch(
            model,
            [(images_of(2), [0, 1])],
            sgd(model),
            criterion=lambda logits, labels: logits.detach().sum(),
            progress=False,
        )


# Optimisers and schedulers of something else


@pytest.mark.bad_input
def test_an_optimiser_of_another_model_is_refused():
    model, other = linear_model(), linear_model()
    with pytest.raises(ValueError, match=r"optimizer holds 2 parameters, none of them of the 2"):
        train_one_epoch(model, [(images_of(2), [0, 1])], sgd(other), progress=False)


@pytest.mark.bad_input
def test_an_optimiser_of_a_layer_that_was_replaced_or_frozen_is_refused():
    model = linear_model()
    optimizer = sgd(model)
    model[1] = nn.Linear(12, 3)
    with pytest.raises(ValueError, match="none of them of the 2 of model"):
        train_one_epoch(model, [(images_of(2), [0, 1])], optimizer, progress=False)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="none of them of the 0 of model"):
        train_one_epoch(model, [(images_of(2), [0, 1])], sgd(model), progress=False)


@pytest.mark.bad_input
def test_an_optimiser_of_a_layer_that_takes_no_part_is_refused():
    model = linear_model()
    model.register_module("unused", nn.Linear(2, 2))
    model.forward = lambda images: model[1](model[0](images))
    optimizer = torch.optim.SGD(model.unused.parameters(), 0.1)
    with pytest.raises(ValueError, match="depends on none of the parameters that optimizer holds"):
        train_one_epoch(model, [(images_of(2), [0, 1])], optimizer, progress=False)


def test_an_optimiser_of_some_layers_trains_these_and_clips_by_their_gradients_alone(device):
    steps = []
    for others_trained in (True, False):
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Linear(4, 3))
        for seed, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(seed)
            nn.init.normal_(parameter, std=0.5, generator=generator)
        model[1].requires_grad_(others_trained)
        model.to(device)
        optimizer = torch.optim.SGD(model[2].parameters(), 1.0)
        batches = [(images_of(4), [0, 1, 2, 0])] * 3
        train_one_epoch(model, batches, optimizer, max_grad_norm=0.1, progress=False)
        steps.append(model[2].weight.detach())
    rtol, atol = tolerance(device, 1e-6, 1e-5), tolerance(device, 0.0, 1e-7)
    torch.testing.assert_close(*steps, rtol=rtol, atol=atol)


def test_a_compiled_models_parameters_are_the_models():
    model = linear_model()
    wrapped = nn.DataParallel(model)
    assert TrainingStep(wrapped, sgd(model), CPU)._trained == tuple(model.parameters())


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("scheduler", "kind", "message"),
    [
        (lambda optimizer: 0.1, TypeError, "batch_scheduler is a float; expected a learning-rate"),
        (
            lambda optimizer: torch.optim.lr_scheduler.ExponentialLR,
            TypeError,
            "batch_scheduler is a type; expected a learning-rate",
        ),
        (
            torch.optim.lr_scheduler.ReduceLROnPlateau,
            TypeError,
            "batch_scheduler is a ReduceLROnPlateau, which depends on a metric",
        ),
        (
            lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(sgd(linear_model()), 0.5),
            ValueError,
            "batch_scheduler was built for another optimizer",
        ),
    ],
)
def test_what_cannot_be_stepped_after_a_step_is_no_batch_scheduler(scheduler, kind, message):
    model = linear_model()
    optimizer = sgd(model)
    with pytest.raises(kind, match=message):
        train_one_epoch(
            model,
            [(images_of(2), [0, 1])],
            optimizer,
            batch_scheduler=scheduler(optimizer),
            progress=False,
        )


# Classes by name


class Named(Dataset):
    """Images whose largest pixels are those of their class, by its name in ``ANIMALS``."""

    def __init__(self, classes: tuple[str, ...] | list[str], count: int = 12) -> None:
        self.classes = classes
        self.labels = [i % len(classes) for i in range(count)]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        image = torch.zeros(4)
        image[ANIMALS.index(self.classes[self.labels[index]])] = 5.0
        return image, self.labels[index]


ANIMALS = ("ape", "bee", "cat", "dog")


class Perfect(nn.Identity):
    """Knows the animals; four outputs."""

    classes: tuple[str, ...] | None = ANIMALS


@pytest.mark.parametrize(
    "classes",
    [ANIMALS, ["dog", "cat", "bee", "ape"], ("bee", "dog"), ("ape", "bee"), ("dog", "ape", "cat")],
    ids=str,
)
@pytest.mark.parametrize(
    "part",
    [lambda data: data, lambda data: Subset(data, range(1, 7)), lambda d: ConcatDataset([d, d])],
    ids=["all", "subset", "concatenated"],
)
def test_a_perfect_network_has_all_right_whatever_the_order_of_the_data(device, classes, part):
    data = part(Named(classes))
    metrics = evaluate(Perfect(), DataLoader(data, 5), progress=False, device=device)
    assert metrics.accuracy == 1.0
    assert metrics.classes == ANIMALS
    assert metrics.confusion.shape == (4, 4)
    present = {
        name
        for name, accuracy in zip(ANIMALS, metrics.per_class_accuracy, strict=True)
        if not np.isnan(accuracy)
    }
    assert present == {*classes}


def test_the_library_loader_of_fewer_classes_is_mapped_by_name(device):
    images = random_batch(8, 4, 4)
    data = in_memory(images)
    data = type(data)(data.images, data.labels, ("cat", "ape"))

    class Guess(nn.Module):
        classes = ANIMALS

        def forward(self, images):
            classes = torch.tensor([2, 0] * (len(images) // 2), device=images.device)
            return F.one_hot(classes, 4).float()

    loader = BatchLoader(data, Preprocess(4, 4), batch_size=4)
    for views in (1, 2):
        metrics = evaluate(Guess(), loader, views=views, progress=False, device=device)
        assert metrics.accuracy == 1.0
        assert metrics.confusion.diagonal().tolist() == [4, 0, 4, 0]


def test_shares_are_mapped_by_name_too(device):
    class Shares(Named):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image, F.one_hot(torch.tensor(label), len(self.classes)).float()

    metrics = evaluate(
        Perfect(), DataLoader(Shares(("dog", "bee")), 5), progress=False, device=device
    )
    assert metrics.accuracy == 1.0
    assert metrics.confusion.diagonal().tolist() == [0, 6, 0, 6]
    assert metrics.loss == pytest.approx(
        evaluate(
            Perfect(), DataLoader(Named(("dog", "bee")), 5), progress=False, device=device
        ).loss
    )


def test_a_wrapped_models_names_are_those_of_the_model():
    metrics = evaluate(
        nn.DataParallel(Perfect()), DataLoader(Named(("dog", "bee")), 5), progress=False
    )
    assert metrics.accuracy == 1.0


@pytest.mark.bad_input
def test_a_class_that_the_model_does_not_have_is_refused_with_both_lists():
    with pytest.raises(ValueError, match=re.escape("the model does not have ['eel']")) as caught:
        by_number(ANIMALS, ("ape", "eel"), labels=(0, 1))
    assert str(ANIMALS) in str(caught.value)
    assert str(("ape", "eel")) in str(caught.value)


class Loader:
    """Batches with a data set at their side."""

    def __init__(self, batches, dataset) -> None:
        self.batches, self.dataset = batches, dataset

    def __iter__(self):
        return iter(self.batches)


class Data:
    def __init__(self, classes) -> None:
        self.classes = classes


def by_number(model_classes, data_classes, labels=(0, 1, 2, 3)):
    model = Perfect()
    model.classes = model_classes
    batches = [(5 * torch.eye(4)[: len(labels)], [*labels])]
    return evaluate(model, Loader(batches, Data(data_classes)), progress=False)


@pytest.mark.parametrize(
    ("model_classes", "data_classes", "names"),
    [
        (ANIMALS, None, ANIMALS),
        (None, ANIMALS, ANIMALS),
        (None, None, ("0", "1", "2", "3")),
        (ANIMALS, ("0", "1", "2", "3"), ANIMALS),
        (ANIMALS, ("0", "1"), ANIMALS),
        (("0", "1", "2", "3"), ANIMALS, ANIMALS),
        # Of a last layer that was replaced since.
        (("one", "two"), ANIMALS, ANIMALS),
    ],
)
def test_where_one_side_has_no_names_classes_are_told_by_number(model_classes, data_classes, names):
    metrics = by_number(model_classes, data_classes)
    assert (metrics.accuracy, metrics.classes) == (1.0, names)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("model_classes", "data_classes"),
    [
        (None, ("ape", "bee")),
        (None, (*ANIMALS, "eel")),
        (("0", "1", "2", "3"), ("ape", "bee")),
        (ANIMALS, ("0", "1", "2", "3", "4")),
        (None, ("0", "1", "2", "3", "4")),
    ],
)
def test_another_number_of_classes_without_names_on_both_sides_is_refused(
    model_classes, data_classes
):
    with pytest.raises(ValueError, match=r"^data has \d classes, .*, but the model has 4"):
        by_number(model_classes, data_classes)


@pytest.mark.bad_input
def test_numbers_that_may_be_names_or_places_are_refused():
    folders = ("0", "1", "10", "2")  # in the order of their names
    assert by_number(folders, folders).accuracy == 1.0
    with pytest.raises(ValueError, match=r"may be these names or their places; expected data"):
        by_number(("1", "0", "2", "3"), ("0", "1", "2", "3"))


@pytest.mark.bad_input
def test_data_with_more_classes_than_the_model_says_how_to_leave_them_out():
    with pytest.raises(ValueError, match=r"does not have \['eel'\].*--classes and the names"):
        by_number(ANIMALS, (*ANIMALS, "eel"))


@pytest.mark.bad_input
def test_labels_beyond_the_classes_of_the_data_are_refused_before_they_are_mapped():
    with pytest.raises(ValueError, match=r"labels run from 0 to 3, but data has 2 classes"):
        by_number(ANIMALS, ("dog", "ape"))


@pytest.mark.bad_input
def test_a_name_that_stands_twice_cannot_be_mapped():
    with pytest.raises(ValueError, match="a name stands twice"):
        by_number(("ape", "ape", "cat", "dog"), ("cat", "ape"))
    # In the same order there is nothing to map.
    twice = ("ape", "ape", "cat", "dog")
    assert by_number(twice, twice).accuracy == 1.0


@pytest.mark.bad_input
def test_data_sets_of_different_classes_cannot_be_evaluated_together(device):
    data = ConcatDataset([Named(("ape", "bee")), Named(("bee", "ape"))])
    with pytest.raises(ValueError, match="the data sets of a ConcatDataset have the classes"):
        evaluate(Perfect(), DataLoader(data, 5), progress=False, device=device)


@pytest.mark.bad_input
def test_a_model_is_not_trained_on_its_classes_in_another_order():
    model = nn.Linear(4, 4)
    model.classes = ANIMALS
    loader = DataLoader(Named(("dog", "cat", "bee", "ape")), 4)
    message = "model has the classes of data in another order"
    with pytest.raises(ValueError, match=message):
        train_one_epoch(model, loader, sgd(model), progress=False)
    model.classes = tuple(loader.dataset.classes)
    assert train_one_epoch(model, loader, sgd(model), progress=False).images == 12


# Several batches in a step


def steps_of(
    device: torch.device,
    sizes: list[int],
    accumulation_steps: int,
    precision: str = "float32",
    **options,
):
    """The weights after an epoch over batches of these sizes."""
    model = linear_model(device=device)
    optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9, fused=True)
    images, labels = images_of(sum(sizes)), torch.arange(sum(sizes)) % 3
    batches = [*zip(images.split(sizes), labels.split(sizes), strict=True)]
    metrics = train_one_epoch(
        model,
        batches,
        optimizer,
        accumulation_steps=accumulation_steps,
        precision=precision,
        progress=False,
        **options,
    )
    return torch.cat([p.detach().flatten() for p in model.parameters()]), metrics


@pytest.mark.parametrize("max_grad_norm", [None, 0.05])
@pytest.mark.parametrize(
    ("sizes", "whole"),
    [([4, 4, 4, 4], [8, 8]), ([4, 4, 4], [8, 4]), ([4, 4, 4, 1], [8, 5]), ([1, 7, 3], [8, 3])],
    ids=str,
)
def test_a_step_on_several_batches_is_that_on_one_of_all_their_images(
    device, sizes, whole, max_grad_norm
):
    found, metrics = steps_of(device, sizes, 2, max_grad_norm=max_grad_norm)
    expected, whole_metrics = steps_of(device, whole, 1, max_grad_norm=max_grad_norm)
    atol = tolerance(device, 1e-7, 1e-6)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=atol)
    assert metrics.images == whole_metrics.images == sum(sizes)
    assert metrics.loss == pytest.approx(whole_metrics.loss, rel=1e-5)


def test_batches_without_images_do_not_count_for_a_step(device):
    model, plain = linear_model(device=device), linear_model(device=device)
    images, labels = images_of(8), torch.arange(8) % 3
    batches = [(images[:4], labels[:4]), (images[:0], labels[:0]), (images[4:], labels[4:])]
    train_one_epoch(model, batches, sgd(model), accumulation_steps=2, progress=False)
    train_one_epoch(plain, [(images, labels)], sgd(plain), progress=False)
    torch.testing.assert_close(model[1].weight, plain[1].weight)


def test_a_scheduler_is_stepped_after_each_step_of_several_batches(device):
    model = linear_model(device=device)
    optimizer = sgd(model, lr=1.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    batches = [(images_of(2), [0, 1])] * 5
    train_one_epoch(
        model,
        batches,
        optimizer,
        batch_scheduler=schedule,
        accumulation_steps=2,
        progress=False,
    )
    assert optimizer.param_groups[0]["lr"] == 0.5**3


@pytest.mark.bad_input
def test_a_loss_that_is_not_finite_names_the_step_of_several_batches(device):
    model = linear_model(device=device)
    batches = [(images_of(2), [0, 1]) for _ in range(6)]
    batches[3][0][0] = float("nan")
    with pytest.raises(FloatingPointError, match="the loss of step 2 is not finite"):
        train_one_epoch(model, batches, sgd(model), accumulation_steps=2, progress=False)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulation_steps": 0}, "accumulation_steps is 0; expected an integer from 1 to"),
        ({"accumulation_steps": 1.5}, "accumulation_steps is 1.5; expected an integer from 1 to"),
        ({"max_grad_norm": 0}, "max_grad_norm is 0; expected a finite number above 0"),
        ({"max_grad_norm": "1"}, "max_grad_norm is '1'; expected a finite number above 0"),
    ],
)
def test_an_argument_out_of_its_range_is_named(options, message):
    model = linear_model()
    with pytest.raises(ValueError, match=message):
        train_one_epoch(model, [(images_of(2), [0, 1])], sgd(model), progress=False, **options)


@pytest.mark.bad_input  # for the annotations
def test_numpys_numbers_are_numbers(device):
    _, metrics = steps_of(device, [2, 2], np.int64(2), max_grad_norm=np.float32(1.0))
    assert metrics.images == 4
    evaluated = evaluate(
        linear_model(device=device), [(images_of(2), [0, 1])], topk=np.array([1, 2]), progress=False
    )
    assert [*evaluated.topk_accuracy] == [1, 2]
    assert {type(k) for k in evaluated.topk_accuracy} == {int}


def test_labels_that_are_shares_are_trained_on_in_steps_of_several_batches(device):
    model, plain = linear_model(device=device), linear_model(device=device)
    generator = torch.Generator().manual_seed(2)
    images, shares = images_of(10), torch.randn(10, 3, generator=generator).softmax(1)
    batches = [*zip(images.split(4), shares.split(4), strict=True)]
    whole = [*zip(images.split(8), shares.split(8), strict=True)]
    metrics = train_one_epoch(model, batches, sgd(model), accumulation_steps=2, progress=False)
    expected = train_one_epoch(plain, whole, sgd(plain), progress=False)
    torch.testing.assert_close(model[1].weight, plain[1].weight)
    assert (metrics.images, metrics.accuracy) == (10, expected.accuracy)


def test_a_loader_of_the_library_is_trained_with_in_steps_of_several_batches(device):
    data = in_memory(random_batch(10, 2, 2), classes=3)
    loader = BatchLoader(data, Preprocess(2, 2), batch_size=4)
    model = linear_model(device=device)
    metrics = train_one_epoch(model, loader, sgd(model), accumulation_steps=2, progress=False)
    assert metrics.images == 10
    assert metrics.accuracy is not None


# float16


@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
def test_float16_has_the_gradients_of_float32_nearly(device, max_grad_norm):
    found, metrics = steps_of(device, [4, 4, 4], 1, "float16", max_grad_norm=max_grad_norm)
    expected, exact = steps_of(device, [4, 4, 4], 1, max_grad_norm=max_grad_norm)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.01)
    assert metrics.loss == pytest.approx(exact.loss, rel=0.01)


@pytest.mark.parametrize("max_grad_norm", [None, 0.05])
def test_float16_in_steps_of_several_batches_is_that_on_one(device, max_grad_norm):
    found, _ = steps_of(device, [4, 4, 4, 1], 2, "float16", max_grad_norm=max_grad_norm)
    expected, _ = steps_of(device, [8, 5], 1, "float16", max_grad_norm=max_grad_norm)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.01)


def half_step(model, optimizer, **options) -> TrainingStep:
    return TrainingStep(model, optimizer, model[1].weight.device, "float16", **options)


OPTIMIZERS = {
    "fused sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "fused adamw": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_steps_that_overflow_in_float16_change_only_the_scale(device, optimizer, max_grad_norm):
    model, fresh = linear_model(device=device), linear_model(device=device)
    built = OPTIMIZERS[optimizer](model.parameters())
    schedule = torch.optim.lr_scheduler.ExponentialLR(built, 1.0)
    step = half_step(model, built, max_grad_norm=max_grad_norm, batch_scheduler=schedule)
    step.scaler.load_state_dict({**step.scaler.state_dict(), "scale": 2.0**40})
    images, labels = images_of(8).to(device), torch.arange(8, device=device) % 3
    totals = Totals(device)
    step(images, labels, totals)  # without a warning of the schedule
    assert torch.equal(model[1].weight, fresh[1].weight)
    assert step.scaler.get_scale() == 2.0**39
    while step.scaler.get_scale() > 2.0**10:
        if not torch.equal(model[1].weight, fresh[1].weight):
            break
        step(images, labels, totals)
    # The first step that counts is that of an optimiser that has seen no overflow.
    other = OPTIMIZERS[optimizer](fresh.parameters())
    clean = half_step(fresh, other, max_grad_norm=max_grad_norm)
    clean.scaler.load_state_dict({**clean.scaler.state_dict(), "scale": step.scaler.get_scale()})
    clean(images, labels, totals)
    torch.testing.assert_close(model.state_dict(), fresh.state_dict(), rtol=1e-3, atol=1e-4)
    before = F.cross_entropy(model(images), labels).item()
    for _ in range(20):
        step(images, labels, totals)
    assert F.cross_entropy(model(images), labels).item() < before


def test_small_gradients_are_not_lost_in_float16(device):
    model = linear_model(device=device)
    with torch.no_grad():
        model[1].weight.zero_()
    small = lambda logits, labels: 1e-7 * logits.float().sum()
    train_one_epoch(
        model,
        [(torch.ones(1, 3, 2, 2), [0])],
        sgd(model, lr=1.0),
        criterion=small,
        precision="float16",
        progress=False,
    )
    assert model[1].weight[0, 0].item() == pytest.approx(-1e-7, rel=1e-2)


@pytest.mark.bad_input
def test_a_model_whose_weights_are_float16_is_told_to_keep_them_in_float32():
    model = linear_model().half()
    with pytest.raises(ValueError, match=r"weights of torch\.float16, but precision is 'float16'"):
        train_one_epoch(
            model, [(images_of(2), [0, 1])], sgd(model), precision="float16", progress=False
        )


def test_float16_does_not_wait_for_the_device_in_a_step(monkeypatch):
    model = linear_model()
    step = half_step(model, OPTIMIZERS["fused sgd"](model.parameters()), max_grad_norm=1.0)
    batch = (images_of(4), torch.arange(4) % 3)
    totals = Totals(CPU)
    step(*batch, totals)  # the scale is made in the first
    monkeypatch.setattr(batches_module, "_look", lambda labels: (None, None))
    monkeypatch.setattr(step_module, "_is_read", lambda device: False)
    for name in ("item", "tolist", "cpu", "__bool__", "__int__", "__float__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_: pytest.fail("waited for the device"))
    step(*batch, totals)


@pytest.mark.bad_input
@pytest.mark.parametrize("loader", [None, 3, len, np.array(5), torch.tensor(5), Dataset])
def test_what_cannot_be_iterated_is_no_loader(loader):
    for run in both(loader):
        with pytest.raises(TypeError, match=r"^loader is a .*; expected an iterable of batches"):
            run()


@pytest.mark.bad_input
@pytest.mark.parametrize("which", [0, 1])
def test_batches_without_numbers_are_refused(which):
    batch = [images_of(2), torch.tensor([0, 1])]
    batch[which] = batch[which].to("meta")
    for run in both([tuple(batch)]):
        with pytest.raises(ValueError, match=r"^images or labels are on the device 'meta'"):
            run()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("progress", [None, "yes", 1]),
        ("topk", [range(10**9), np.array(5), "1", 5, None, [10**400, 0]]),
        ("views", [1.5, None, "1", torch.zeros(2), True]),
        ("device", [0, "meta", b"cpu", ["cpu"]]),
        ("precision", [None, "half", 16]),
    ],
)
def test_junk_is_refused_by_the_name_of_its_argument(argument, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^{argument} is "):
            evaluate(linear_model(), [], **{argument: value})


@pytest.mark.bad_input
def test_data_sets_that_hold_themselves_have_no_names():
    loader = DataLoader(Subset(in_memory(random_batch(4, 2, 2)), [0, 1]))
    loader.dataset.dataset = loader.dataset
    assert batches_module.data_names(loader) is None
