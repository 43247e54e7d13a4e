"""The promises of the metrics: what they say, what JSON gets, and the sums behind them."""

import json
from dataclasses import FrozenInstanceError, asdict, replace

import numpy as np
import pytest
import torch

from alexnet_lib.training.metrics import EpochMetrics, EpochRecord, EvalMetrics, Totals, stuck_note


def evaluated(**changes) -> EvalMetrics:
    fields = {
        "loss": 0.5,
        "accuracy": 0.25,
        "topk_accuracy": {1: 0.25, 5: 0.75},
        "confusion": np.array([[1, 2], [0, 1]]),
        "classes": ("cat", "dog"),
        "images": 1234,
        "seconds": 1.0,
    }
    return EvalMetrics(**{**fields, **changes})


# Sums


def test_the_means_are_over_images_not_over_batches(device):
    totals = Totals(device)
    totals.add(
        torch.tensor(1.0, device=device), torch.tensor([True, False, False], device=device), 3
    )
    totals.add(torch.tensor(5.0, device=device), torch.tensor([True], device=device), 1)
    metrics = totals.compute()
    assert (metrics.loss, metrics.accuracy, metrics.images) == (2.0, 0.5, 4)
    assert totals.steps == 2


def test_images_a_second_are_images_over_seconds(device, clock):
    totals = Totals(device)
    for _ in range(3):
        clock.now += 2.0
        totals.add(
            torch.tensor(1.0, device=device), torch.ones(10, dtype=torch.bool, device=device), 10
        )
    clock.now += 6.0
    metrics = totals.compute()
    assert metrics.seconds == 12.0
    assert metrics.images_per_second == 2.5


def test_sums_continue_from_their_state(device, clock):
    first, whole = Totals(device), Totals(device)
    for totals in (first, whole):
        totals.add(torch.tensor(0.1, device=device), torch.tensor([True, False], device=device), 2)
    clock.now += 3.0
    state = first.state()
    clock.now += 100.0  # between the two, nobody trains
    second = Totals(device)
    second.set_state(state)
    for totals in (second, whole):
        totals.add(torch.tensor(0.7, device=device), torch.tensor([True], device=device), 1)
    clock.now += 5.0
    assert second.compute() == EpochMetrics(
        loss=whole.compute().loss, accuracy=2 / 3, images=3, seconds=8.0, images_per_second=3 / 8
    )
    assert second.steps == 2


def add_steps(totals: Totals, faults: list[int], loss: float = 1.0) -> None:
    """A step of one image, a hit, for each fault; the loss of the first kind is NaN."""
    for fault in faults:
        mark, device = totals.mark(), totals.loss.device
        number = float("nan") if fault == 1 else loss
        totals.add(torch.tensor(number, device=device), torch.tensor([True], device=device), 1)
        totals.end_step(mark, torch.tensor(fault, device=device))


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ([0, 1, 0, 3], "^the loss of step 2 is not finite"),
        ([0, 0, 3, 1], "^the gradient of fc.weight in step 3 is not finite"),
    ],
)
def test_the_first_step_that_is_not_finite_is_named(device, faults, message):
    totals = Totals(device)
    totals.trained = ("conv.weight", "fc.weight")
    add_steps(totals, faults)
    with pytest.raises(FloatingPointError, match=message):
        totals.compute()


def test_a_step_that_was_not_finite_stays_named_after_the_state_was_set(device):
    totals, other = Totals(device), Totals(device)
    add_steps(totals, [0, 3])
    other.set_state(totals.state())
    other.trained = ("conv.weight", "fc.weight")
    with pytest.raises(FloatingPointError, match=r"the gradient of fc\.weight in step 2"):
        other.compute()


def test_skipped_steps_count_in_no_mean(device):
    totals = Totals(device)
    totals.allowed, totals.trained = 2, ("conv.weight",)
    add_steps(totals, [0, 1, 2], loss=3.0)
    totals.add(torch.tensor(1.0, device=device), torch.tensor([False], device=device), 1)
    metrics = totals.compute()
    assert (metrics.loss, metrics.accuracy, metrics.images) == (2.0, 0.5, 2)
    assert (metrics.skipped_steps, totals.steps) == (2, 4)
    assert str(metrics).endswith(" images/s, 2 steps skipped")
    assert totals.skipped_note() == (
        "2 of 4 steps were skipped, since a loss or a gradient was NaN or infinite: first step 2, "
        "the loss"
    )


def test_every_sum_is_in_the_state_and_comes_back(device):
    totals, other = Totals(device), Totals(device)
    totals.allowed = other.allowed = 2
    totals.trained = other.trained = ("conv.weight",)
    add_steps(totals, [0, 2, 1, 0])
    totals.add(
        torch.tensor(1.0, device=device),
        torch.tensor([False], device=device),
        1,
        torch.tensor([True], device=device),
    )
    sums = {name for name, value in vars(totals).items() if isinstance(value, torch.Tensor)}
    assert sums < set(totals.state())
    assert all(bool(totals.state()[name]) for name in sums)
    other.set_state(totals.state())
    assert {name: int(value) for name, value in other.state().items()} == {
        name: int(value) for name, value in totals.state().items()
    }
    assert other.skipped_note() == totals.skipped_note()


def test_more_skipped_steps_than_allowed_are_an_error_that_names_the_first(device):
    totals = Totals(device)
    totals.allowed = 2
    add_steps(totals, [0, 1, 1, 1])
    with pytest.raises(FloatingPointError, match=r"^3 steps were skipped, at most 2 .* of step 2"):
        totals.check()


def test_an_epoch_without_a_step_that_counts_has_no_mean(device):
    totals = Totals(device)
    totals.allowed = 2
    add_steps(totals, [1, 1])
    with pytest.raises(FloatingPointError, match=r"no step could be taken: 2 of 2 steps were"):
        totals.compute()


# A loss that stays


@pytest.mark.parametrize(
    ("loss", "classes", "stuck"),
    [
        (2.3026, 10, True),
        (2.2847, 10, True),
        (2.27, 10, False),
        (2.36, 10, False),
        (6.9, 1000, True),
        (0.0, 1, False),
    ],
)
def test_a_loss_that_stays_at_that_of_guessing_points_to_the_doctor(loss, classes, stuck):
    record = EpochRecord(3, 0.01, EpochMetrics(loss, 0.1, 10, 4.0, 2.5), None, 227)
    note = stuck_note(record, classes)
    assert (note is not None) == stuck
    if note is not None:
        assert f"the training loss of epoch 3 is {loss:.4f}" in note
        assert "alexnet-lib doctor" in note


# What they say


def test_training_metrics_are_readable_frozen_and_plain():
    metrics = EpochMetrics(1.25, 0.5, 10, 4.0, 2.5)
    assert str(metrics) == "loss 1.2500, accuracy 50.0%, 2.5 images/s"
    assert json.loads(json.dumps(metrics.to_dict())) == {
        "loss": 1.25,
        "accuracy": 0.5,
        "images": 10,
        "seconds": 4.0,
        "images_per_second": 2.5,
        "skipped_steps": 0,
    }
    with pytest.raises(FrozenInstanceError):
        metrics.loss = 0.0


def test_evaluation_metrics_are_readable_and_frozen():
    metrics = evaluated()
    assert str(metrics) == "loss 0.5000, accuracy 25.0%, top-5 75.0% (1,234 images)"
    with pytest.raises(FrozenInstanceError):
        metrics.loss = 0.0


def test_the_accuracy_of_a_class_is_the_share_of_its_images_on_the_diagonal():
    metrics = evaluated(confusion=np.array([[3, 1, 0], [0, 0, 0], [2, 2, 4]]))
    np.testing.assert_array_equal(metrics.per_class_accuracy, [0.75, np.nan, 0.5])


def test_evaluation_metrics_are_plain_data_in_json():
    metrics = evaluated(confusion=np.array([[3, 1], [0, 0]]))
    assert json.loads(json.dumps(metrics.to_dict(), allow_nan=False)) == {
        "loss": 0.5,
        "accuracy": 0.25,
        "topk_accuracy": {"1": 0.25, "5": 0.75},
        "per_class_accuracy": {"cat": 0.75, "dog": None},
        "confusion": [[3, 1], [0, 0]],
        "images": 1234,
        "seconds": 1.0,
    }


TRAINED = EpochMetrics(1.25, 0.5, 10, 4.0, 2.5)


def test_the_line_of_an_epoch_has_these_fields():
    assert EpochRecord(3, 0.01, TRAINED, evaluated(), 227).to_dict() == {
        "epoch": 3,
        "learning_rate": 0.01,
        "image_size": 227,
        "train": {"loss": 1.25, "accuracy": 0.5, "images_per_second": 2.5},
        "validation": {"loss": 0.5, "accuracy": 0.25},
    }


def test_the_line_of_an_epoch_has_the_skipped_steps_where_there_are_any():
    line = EpochRecord(1, 0.1, replace(TRAINED, skipped_steps=3), None, 227).to_dict()
    assert line["train"]["skipped_steps"] == 3
    assert "skipped_steps" not in EpochRecord(1, 0.1, TRAINED, None, 227).to_dict()["train"]


def test_the_line_of_an_epoch_without_validation_says_so():
    assert EpochRecord(3, 0.01, TRAINED, None, 227).to_dict()["validation"] is None


def test_a_record_comes_back_from_a_runs_state_field_for_field():
    record = EpochRecord(3, 0.01, TRAINED, evaluated(), 227)
    state = asdict(record)
    # As JSON and the state's tensors give them back.
    state["validation"]["confusion"] = torch.from_numpy(record.validation.confusion)
    state["validation"]["classes"] = ["cat", "dog"]
    again = EpochRecord.from_state(state)
    assert (again.epoch, again.learning_rate, again.train) == (3, 0.01, TRAINED)
    expected, found = asdict(record.validation), asdict(again.validation)
    np.testing.assert_array_equal(found.pop("confusion"), expected.pop("confusion"))
    assert found == expected


def test_a_record_without_validation_comes_back_from_a_runs_state():
    record = EpochRecord(3, 0.01, TRAINED, None, 227)
    assert EpochRecord.from_state(asdict(record)) == record


# Where an accuracy has no meaning


def test_metrics_without_an_accuracy_say_none():
    trained = EpochMetrics(1.25, None, 10, 4.0, 2.5)
    assert str(trained) == "loss 1.2500, 2.5 images/s"
    metrics = evaluated(accuracy=None, topk_accuracy={}, confusion=None, classes=())
    assert str(metrics) == "loss 0.5000 (1,234 images)"
    assert metrics.per_class_accuracy is None
    assert json.loads(json.dumps(metrics.to_dict(), allow_nan=False)) == {
        "loss": 0.5,
        "accuracy": None,
        "topk_accuracy": {},
        "per_class_accuracy": None,
        "confusion": None,
        "images": 1234,
        "seconds": 1.0,
    }
    state = asdict(EpochRecord(1, 0.1, trained, metrics, 227))
    assert EpochRecord.from_state(state).validation.confusion is None


@pytest.mark.parametrize("hits", [None, torch.ones(2, dtype=torch.bool)])
def test_one_batch_without_classes_is_enough_for_no_accuracy(device, hits):
    totals = Totals(device)
    totals.add(torch.tensor(1.0, device=device), torch.ones(2, dtype=torch.bool, device=device), 2)
    hits = None if hits is None else hits.to(device)
    unfit = None if hits is None else torch.tensor([False, True], device=device)
    totals.add(torch.tensor(1.0, device=device), hits, 2, unfit)
    assert totals.compute().accuracy is None
    other = Totals(device)
    other.set_state(totals.state())
    assert other.compute().accuracy is None


@pytest.mark.bad_input
def test_with_cross_entropy_labels_that_are_no_shares_are_an_error(device):
    totals = Totals(device, cross_entropy=True)
    totals.add(
        torch.tensor(1.0, device=device),
        torch.ones(1, dtype=torch.bool, device=device),
        1,
        torch.tensor([True], device=device),
    )
    with pytest.raises(ValueError, match="not all rows are shares of the classes"):
        totals.compute()


@pytest.mark.bad_input
def test_no_images_have_no_mean(device):
    with pytest.raises(ValueError, match="the epoch has no images; expected at least one"):
        Totals(device).compute()


def test_batches_of_one_step_are_counted_once(device):
    totals = Totals(device)
    totals.add(torch.tensor(1.0, device=device), torch.tensor([True], device=device), 1)
    totals.add(
        torch.tensor(1.0, device=device), torch.tensor([True], device=device), 1, begins=False
    )
    assert (totals.steps, totals.images) == (1, 2)
