"""The promises of the metrics: what they say, what JSON gets, and the sums behind them."""

import json
from dataclasses import FrozenInstanceError, asdict

import numpy as np
import pytest
import torch

from alexnet_lib.training.metrics import EpochMetrics, EpochRecord, EvalMetrics, Totals

CPU = torch.device("cpu")


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


def test_the_means_are_over_images_not_over_batches():
    totals = Totals(CPU)
    totals.add(torch.tensor(1.0), torch.tensor([True, False, False]), 3)
    totals.add(torch.tensor(5.0), torch.tensor([True]), 1)
    metrics = totals.compute()
    assert (metrics.loss, metrics.accuracy, metrics.images) == (2.0, 0.5, 4)
    assert totals.steps == 2


def test_images_a_second_are_images_over_seconds(clock):
    totals = Totals(CPU)
    for _ in range(3):
        clock.now += 2.0
        totals.add(torch.tensor(1.0), torch.ones(10, dtype=torch.bool), 10)
    clock.now += 6.0
    metrics = totals.compute()
    assert metrics.seconds == 12.0
    assert metrics.images_per_second == 2.5


def test_sums_continue_from_their_state(clock):
    first, whole = Totals(CPU), Totals(CPU)
    for totals in (first, whole):
        totals.add(torch.tensor(0.1), torch.tensor([True, False]), 2)
    clock.now += 3.0
    state = first.state()
    clock.now += 100.0  # between the two, nobody trains
    second = Totals(CPU)
    second.set_state(state)
    for totals in (second, whole):
        totals.add(torch.tensor(0.7), torch.tensor([True]), 1)
    clock.now += 5.0
    assert second.compute() == EpochMetrics(
        loss=whole.compute().loss, accuracy=2 / 3, images=3, seconds=8.0, images_per_second=3 / 8
    )
    assert second.steps == 2


@pytest.mark.bad_input
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_the_first_step_with_a_loss_that_is_not_finite_is_named(poison):
    totals = Totals(CPU)
    for loss in (1.0, poison, 1.0, poison):
        totals.add(torch.tensor(loss), torch.tensor([True]), 1)
    with pytest.raises(FloatingPointError, match="the loss of step 2 is not finite"):
        totals.compute()


@pytest.mark.bad_input
def test_a_loss_that_was_not_finite_stays_named_after_the_state_was_set():
    totals, other = Totals(CPU), Totals(CPU)
    totals.add(torch.tensor(float("nan")), torch.tensor([True]), 1)
    other.set_state(totals.state())
    with pytest.raises(FloatingPointError, match="the loss of step 1 is not finite"):
        other.compute()


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
    assert EpochRecord(3, 0.01, TRAINED, evaluated()).to_dict() == {
        "epoch": 3,
        "learning_rate": 0.01,
        "train": {"loss": 1.25, "accuracy": 0.5, "images_per_second": 2.5},
        "validation": {"loss": 0.5, "accuracy": 0.25},
    }


def test_the_line_of_an_epoch_without_validation_says_so():
    assert EpochRecord(3, 0.01, TRAINED, None).to_dict()["validation"] is None


def test_a_record_comes_back_from_a_runs_state_field_for_field():
    record = EpochRecord(3, 0.01, TRAINED, evaluated())
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
    record = EpochRecord(3, 0.01, TRAINED, None)
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
    state = asdict(EpochRecord(1, 0.1, trained, metrics))
    assert EpochRecord.from_state(state).validation.confusion is None


@pytest.mark.parametrize("hits", [None, torch.ones(2, dtype=torch.bool)])
def test_one_batch_without_classes_is_enough_for_no_accuracy(hits):
    totals = Totals(CPU)
    totals.add(torch.tensor(1.0), torch.ones(2, dtype=torch.bool), 2)
    unfit = None if hits is None else torch.tensor([False, True])
    totals.add(torch.tensor(1.0), hits, 2, unfit)
    assert totals.compute().accuracy is None
    other = Totals(CPU)
    other.set_state(totals.state())
    assert other.compute().accuracy is None


@pytest.mark.bad_input
def test_with_cross_entropy_labels_that_are_no_shares_are_an_error():
    totals = Totals(CPU, cross_entropy=True)
    totals.add(torch.tensor(1.0), torch.ones(1, dtype=torch.bool), 1, torch.tensor([True]))
    with pytest.raises(ValueError, match="not all rows are shares of the classes"):
        totals.compute()


@pytest.mark.bad_input
def test_no_images_have_no_mean():
    with pytest.raises(ValueError, match="the epoch has no images; expected at least one"):
        Totals(CPU).compute()


def test_batches_of_one_step_are_counted_once():
    totals = Totals(CPU)
    totals.add(torch.tensor(1.0), torch.tensor([True]), 1)
    totals.add(torch.tensor(1.0), torch.tensor([True]), 1, begins=False)
    assert (totals.steps, totals.images) == (1, 2)
