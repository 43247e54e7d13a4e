"""The promises of the built-in synthetic set."""

import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from alexnet_lib.data.shapes import SHAPES_CLASSES, draw_shapes, shapes

TRAIN, TEST = 4_000, 2_000


@pytest.fixture(scope="module")
def train() -> tuple[np.ndarray, np.ndarray]:
    return draw_shapes(TRAIN, seed=10)


@pytest.fixture(scope="module")
def test() -> tuple[np.ndarray, np.ndarray]:
    return draw_shapes(TEST, seed=11)


def linear_accuracy(train_features, train_labels, test_features, test_labels, penalty) -> float:
    scaler = StandardScaler().fit(train_features)
    model = LogisticRegression(C=penalty, max_iter=25)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(scaler.transform(train_features), train_labels)
    return model.score(scaler.transform(test_features), test_labels)


def test_a_linear_model_on_the_pixels_stays_under_forty_per_cent(train, test):
    def features(images):
        return images.reshape(len(images), -1).astype(np.float32)

    accuracy = linear_accuracy(features(train[0]), train[1], features(test[0]), test[1], 1e-3)
    assert accuracy < 0.4


def test_a_linear_model_on_the_mean_colour_stays_under_twenty_per_cent(train, test):
    def features(images):
        return images.mean((1, 2))

    accuracy = linear_accuracy(features(train[0]), train[1], features(test[0]), test[1], 1.0)
    assert accuracy < 0.2


def test_images_and_labels_have_the_promised_shapes_and_types():
    images, labels = draw_shapes(7, seed=0, size=40)
    assert (images.shape, images.dtype) == ((7, 40, 40, 3), np.uint8)
    assert (labels.shape, labels.dtype) == ((7,), np.int64)


def test_the_same_seed_gives_the_same_images():
    first, second = draw_shapes(300, seed=3), draw_shapes(300, seed=3)
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])


def test_other_seeds_give_other_images():
    first, second = draw_shapes(300, seed=3), draw_shapes(300, seed=4)
    assert not {image.tobytes() for image in first[0]} & {image.tobytes() for image in second[0]}
    assert not np.array_equal(first[1], second[1])


def test_every_class_comes_equally_often_up_to_one():
    counts = np.bincount(draw_shapes(1_003, seed=0)[1], minlength=10)
    assert sorted(counts) == [100] * 7 + [101] * 3


def test_labels_come_in_random_order():
    labels = draw_shapes(1_000, seed=0)[1]
    # In order, or in turns, neighbours would agree always or never.
    assert 0.05 < (labels[1:] == labels[:-1]).mean() < 0.15


def test_there_are_ten_classes_of_different_names():
    assert len(set(SHAPES_CLASSES)) == 10


def test_every_image_shows_a_figure(train):
    # The lighting alone gives the brightest and the darkest tenth a distance of at most 56.
    grey = train[0].mean(-1).reshape(TRAIN, -1)
    dark, light = np.percentile(grey, [10, 90], axis=1)
    figures = np.array([(light - dark)[train[1] == label].min() for label in range(10)])
    assert (figures > 60).all()


def test_a_figure_is_as_often_brighter_as_darker_than_its_background(train):
    grey = train[0].mean(-1).reshape(TRAIN, -1)
    # A figure covers less than half of the image, so the mean lies on its side of the median.
    brighter = grey.mean(1) > np.median(grey, axis=1)
    for label in range(10):
        assert 0.4 < brighter[train[1] == label].mean() < 0.6


def test_the_built_in_set_shares_no_image_between_training_and_testing():
    parts = [{image.numpy().tobytes() for image in part.images} for part in shapes()]
    assert [len(part) for part in parts] == [6_000, 2_000]
    assert not parts[0] & parts[1]


def test_the_built_in_set_keeps_the_pixels_and_labels_of_its_figures():
    train, _ = shapes(seed=5)
    images, labels = draw_shapes(6_000, seed=10)
    assert np.array_equal(train.images.numpy().transpose(0, 2, 3, 1), images)
    assert np.array_equal(train.labels.numpy(), labels)
    assert train.classes == SHAPES_CLASSES
