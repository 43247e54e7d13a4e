"""The promises of the statistics over images: NumPy's numbers, whatever holds the images."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import (
    Items,
    first_channels,
    in_memory,
    random_batch,
    random_pixels,
    read_lazily,
    seeded,
    write_class_folders,
)
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight
from torch.utils.data import DataLoader, IterableDataset

from alexnet_lib.data.sources import open_parts
from alexnet_lib.data.statistics import (
    ChannelStats,
    compute_channel_stats,
    compute_class_weights,
    compute_color_components,
    measure_pixels,
)

seeds = st.integers(0, 2**32 - 1)


def random_images(seed: int, count: int = 7) -> np.ndarray:
    """uint8 (count, 6, 5, 3), each image around its own colour."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 200, (count, 1, 1, 3))
    return np.uint8(colours + rng.integers(0, 56, (count, 6, 5, 3)))


def assert_close(stats: ChannelStats, other: ChannelStats, rel: float = 1e-12) -> None:
    assert stats.mean == pytest.approx(other.mean, rel=rel)
    assert stats.std == pytest.approx(other.std, rel=rel)
    assert stats.count == other.count


@given(seed=seeds)
def test_mean_and_pixel_deviation_are_those_of_numpy(seed):
    images = random_images(seed)
    stats = compute_channel_stats(images)
    assert stats.mean == pytest.approx((images / 255).mean((0, 1, 2)), rel=1e-12)
    assert stats.std == pytest.approx((images / 255).std((0, 1, 2)), rel=1e-12)
    assert stats.count == 7


@given(seed=seeds)
def test_per_image_deviation_is_the_mean_of_the_images_own_with_divisor_n_minus_one(seed):
    images = random_images(seed)
    stats = compute_channel_stats(images, std="per_image")
    own = (images / 255).std((1, 2), ddof=1)
    assert stats.std == pytest.approx(own.mean(0), rel=1e-12)
    assert stats.mean == pytest.approx((images / 255).mean((0, 1, 2)), rel=1e-12)


@given(seed=seeds, std=st.sampled_from(["pixel", "per_image"]))
def test_the_order_of_the_images_does_not_matter(seed, std):
    images = random_images(seed)
    shuffled = images[np.random.default_rng(seed).permutation(len(images))]
    assert_close(compute_channel_stats(shuffled, std=std), compute_channel_stats(images, std=std))


@given(seed=seeds, batch_size=st.integers(1, 9), std=st.sampled_from(["pixel", "per_image"]))
def test_the_batch_size_does_not_matter(seed, batch_size, std):
    images = random_images(seed)
    loader = DataLoader(first_channels(images), batch_size=batch_size)
    assert_close(compute_channel_stats(loader, std=std), compute_channel_stats(images, std=std))


def test_an_array_of_several_blocks_equals_its_images_one_by_one():
    images = np.random.default_rng(0).integers(0, 256, (600, 4, 4, 3), dtype=np.uint8)
    one_by_one = compute_channel_stats(Items(list(first_channels(images))))
    assert_close(compute_channel_stats(images), one_by_one)


@pytest.mark.parametrize("std", ["pixel", "per_image"])
@pytest.mark.parametrize(
    "hold",
    [
        first_channels,
        lambda images: Items(list(first_channels(images))),
        lambda images: Items(list(images)),
        lambda images: Items([Image.fromarray(image) for image in images]),
        lambda images: Items([(image, 3) for image in first_channels(images)]),
        lambda images: Items([[Image.fromarray(image), "cat"] for image in images]),
        lambda images: DataLoader(Items([(image, 3) for image in first_channels(images)]), 4),
        lambda images: DataLoader(Items(list(first_channels(images))), batch_size=None),
    ],
    ids=[
        "tensor",
        "data set of tensors",
        "data set of arrays",
        "data set of PIL images",
        "data set of pairs",
        "data set of PIL pairs",
        "loader of pairs",
        "loader without batches",
    ],
)
def test_every_kind_of_input_gives_the_array_s_numbers(hold, std):
    images = random_images(1)
    assert_close(
        compute_channel_stats(hold(images), std=std, progress=False),
        compute_channel_stats(images, std=std),
    )


def test_one_array_image_needs_no_batch_dimension():
    image = random_pixels(9, 7)
    assert_close(compute_channel_stats(image), compute_channel_stats(image[None]))


@given(seed=seeds)
def test_floats_and_bytes_of_one_image_agree(seed):
    images = random_images(seed)
    stats = compute_channel_stats(images)
    assert_close(compute_channel_stats(images / 255), stats)
    # float32 holds a 255th to 6e-8.
    assert_close(compute_channel_stats(np.float32(images / 255)), stats, rel=1e-6)


def test_images_of_different_sizes_count_by_their_pixels():
    images = [random_pixels(4, 4), random_pixels(20, 30, seed=1) // 4]
    stats = compute_channel_stats(Items(images))
    pixels = np.concatenate([image.reshape(-1, 3) for image in images]) / 255
    assert stats.mean == pytest.approx(pixels.mean(0), rel=1e-12)
    assert stats.std == pytest.approx(pixels.std(0), rel=1e-12)
    assert stats.count == 2


def test_images_of_different_sizes_count_alike_in_the_per_image_deviation():
    images = [random_pixels(4, 4), random_pixels(20, 30, seed=1) // 4]
    own = [(image / 255).std((0, 1), ddof=1) for image in images]
    stats = compute_channel_stats(Items(images), std="per_image")
    assert stats.std == pytest.approx(np.mean(own, 0), rel=1e-12)


def test_a_hundred_thousand_images_lose_no_digit():
    image = torch.rand(1, 3, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    many = compute_channel_stats(image.expand(100_000, -1, -1, -1))
    assert_close(many, ChannelStats(*one_image(image), 100_000))


def test_a_hundred_merges_lose_no_digit_either():
    image = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    many = compute_channel_stats(Items([image], length=5_000), progress=False)
    assert_close(many, ChannelStats(*one_image(image[None]), 5_000))


def one_image(image: torch.Tensor) -> tuple:
    values = image.numpy()
    return tuple(values.mean((0, 2, 3))), tuple(values.std((0, 2, 3)))


def test_a_spread_far_below_the_mean_is_kept():
    rng = np.random.default_rng(0)
    images = 0.9 + 1e-9 * rng.random((1_000, 4, 4, 3))
    # The sum of squares less the square of the sum would leave nothing of it. The images
    # themselves are exact to 1e-16, which is 1e-7 of their spread.
    assert compute_channel_stats(images).std == pytest.approx(
        (images - 0.9).std((0, 1, 2)), rel=1e-6
    )


def test_equal_pixels_have_no_deviation():
    stats = compute_channel_stats(np.full((300, 4, 4, 3), 77, np.uint8))
    assert stats.std == pytest.approx((0, 0, 0), abs=1e-15)


def test_statistics_are_printed_to_four_digits():
    stats = ChannelStats((0.1, 0.2, 0.3), (0.4, 0.5, 2 / 3), 50_000)
    assert str(stats) == "mean 0.1000, 0.2000, 0.3000; std 0.4000, 0.5000, 0.6667 (50,000 images)"


measures = pytest.mark.parametrize(
    "measure",
    [
        compute_channel_stats,
        lambda images: compute_channel_stats(images, std="per_image"),
        compute_color_components,
    ],
    ids=["pixel", "per image", "components"],
)


@measures
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_what_is_measured_is_left_as_it_was(measure, dtype):
    images = first_channels(random_images(0)).contiguous()
    images = images if dtype == torch.uint8 else images.to(dtype) / 255
    before = images.clone()
    measure(images)
    measure(images[0].permute(1, 2, 0).numpy())
    measure(Items(list(images)))
    assert torch.equal(images, before)


# The colours' components


def covariance(images: np.ndarray) -> np.ndarray:
    """Of the pixels' colours, with divisor n."""
    return np.cov(images.reshape(-1, 3).T / 255, ddof=0)


def directions_of(components) -> np.ndarray:
    return np.array(components.directions)


@given(seed=seeds)
def test_components_are_numpys_eigenvectors_of_the_covariance_of_all_pixels(seed):
    images = random_images(seed)
    components = compute_color_components(images)
    eigenvalues, vectors = np.linalg.eigh(covariance(images))
    assert components.std == pytest.approx(np.sqrt(eigenvalues[::-1]), rel=1e-9)
    # An eigenvector has either sign.
    along = np.abs(directions_of(components) @ vectors[:, ::-1])
    np.testing.assert_allclose(along, np.eye(3), rtol=0, atol=1e-7)
    assert components.count == 7


@given(seed=seeds)
def test_directions_are_orthonormal_and_their_largest_part_is_positive(seed):
    directions = directions_of(compute_color_components(random_images(seed)))
    np.testing.assert_allclose(directions @ directions.T, np.eye(3), rtol=0, atol=1e-12)
    for direction in directions:
        assert direction[np.abs(direction).argmax()] > 0


@given(seed=seeds)
def test_components_give_the_covariance_back_and_fall(seed):
    images = random_images(seed)
    components = compute_color_components(images)
    directions, std = directions_of(components), np.array(components.std)
    again = directions.T @ np.diag(std**2) @ directions
    np.testing.assert_allclose(again, covariance(images), rtol=0, atol=1e-14)
    assert list(std) == sorted(std, reverse=True)


@given(seed=seeds, batch_size=st.integers(1, 9))
def test_components_do_not_depend_on_what_holds_the_images(seed, batch_size):
    images = random_images(seed)
    whole = compute_color_components(images)
    for held in (
        DataLoader(first_channels(images), batch_size=batch_size),
        Items([(Image.fromarray(image), 0) for image in images]),
        images / 255,
    ):
        other = compute_color_components(held, progress=False)
        assert other.std == pytest.approx(whole.std, rel=1e-9)
        np.testing.assert_allclose(directions_of(other), directions_of(whole), rtol=0, atol=1e-7)


def test_components_of_several_blocks_are_those_of_all_pixels():
    images = np.random.default_rng(0).integers(0, 256, (600, 4, 4, 3), dtype=np.uint8)
    images[300:, ..., 1] //= 4
    eigenvalues = np.linalg.eigvalsh(covariance(images))
    assert compute_color_components(images).std == pytest.approx(
        np.sqrt(eigenvalues[::-1]), rel=1e-10
    )


def test_images_of_different_sizes_count_by_their_pixels_in_the_components():
    images = [random_pixels(4, 4), random_pixels(20, 30, seed=1) // 4]
    components = compute_color_components(Items(images), progress=False)
    pixels = np.concatenate([image.reshape(-1, 3) for image in images])
    eigenvalues = np.linalg.eigvalsh(covariance(pixels))
    assert components.std == pytest.approx(np.sqrt(eigenvalues[::-1]), rel=1e-10)
    assert components.count == 2


def test_grey_images_have_one_component():
    grey = np.repeat(random_pixels(8, 8)[None, ..., :1], 3, axis=-1)
    components = compute_color_components(grey)
    assert components.directions[0] == pytest.approx((3**-0.5,) * 3)
    assert components.std[0] == pytest.approx(3**0.5 * (grey[..., 0] / 255).std())
    assert components.std[1:] == pytest.approx((0, 0), abs=1e-8)


def test_images_of_one_colour_have_components_without_deviation():
    images = np.zeros((300, 4, 4, 3), np.uint8) + np.uint8([77, 130, 9])
    components = compute_color_components(images)
    assert components.std == pytest.approx((0, 0, 0), abs=1e-12)
    directions = directions_of(components)
    np.testing.assert_allclose(directions @ directions.T, np.eye(3), rtol=0, atol=1e-12)


# All at once


class Recorded(Items):
    """A data set that records which of its items are read."""

    def __init__(self, items: list) -> None:
        super().__init__(items)
        self.read = []

    def __getitem__(self, index: int):
        self.read.append(index)
        return super().__getitem__(index)


def images_of_sizes(seed: int, sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    """uint8 images, each one around its own colour."""
    rng = np.random.default_rng(seed)
    return [
        np.uint8(rng.integers(0, 200, 3) + rng.integers(0, 56, (height, width, 3)))
        for height, width in sizes
    ]


@given(
    seed=seeds,
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(2, 9)), min_size=1, max_size=8),
)
def test_one_pass_measures_what_numpy_does_of_all_pixels_and_of_each_image(seed, sizes):
    images = images_of_sizes(seed, sizes)
    data = Recorded([*map(first_channels, images)])
    measured = measure_pixels(data, progress=False)
    assert data.read == list(range(len(images)))
    pixels = np.concatenate([image.reshape(-1, 3) for image in images]) / 255
    own = [(image / 255).std((0, 1), ddof=1) for image in images]
    assert measured.mean == pytest.approx(pixels.mean(0), rel=1e-12)
    assert measured.std == pytest.approx(pixels.std(0), rel=1e-12)
    assert measured.per_image_std == pytest.approx(np.mean(own, 0), rel=1e-12)
    components = measured.color_components
    directions, variances = directions_of(components), np.square(components.std)
    again = directions.T @ np.diag(variances) @ directions
    np.testing.assert_allclose(again, np.cov(pixels.T, ddof=0), rtol=0, atol=1e-14)
    assert measured.count == components.count == len(images)


def test_the_statistics_and_the_components_are_those_of_the_one_pass():
    images = random_images(3)
    measured = measure_pixels(images)
    for std in ("pixel", "per_image"):
        assert measured.channel_stats(std) == compute_channel_stats(images, std=std)
    assert measured.color_components == compute_color_components(images)


@pytest.mark.parametrize(
    "measure",
    [
        measure_pixels,
        compute_channel_stats,
        lambda images, **options: compute_channel_stats(images, std="per_image", **options),
        compute_color_components,
    ],
    ids=["all", "pixel", "per image", "components"],
)
def test_every_image_is_read_exactly_once(measure):
    data = Recorded(list(random_images(0, count=9)))
    measure(data, progress=False)
    assert data.read == list(range(9))


@pytest.mark.parametrize("kind", [in_memory, read_lazily])
def test_sets_of_the_library_are_measured_as_their_images(kind):
    images = random_images(4, count=300)
    assert_close(compute_channel_stats(kind(first_channels(images))), compute_channel_stats(images))


def test_an_image_of_one_pixel_leaves_the_other_statistics():
    images = images_of_sizes(0, [(4, 5), (1, 1)])
    measured = measure_pixels(Items(images))
    pixels = np.concatenate([image.reshape(-1, 3) for image in images]) / 255
    assert measured.per_image_std is None
    assert measured.channel_stats("pixel").std == pytest.approx(pixels.std(0), rel=1e-12)


# Wrong input


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("images", "text"),
    [
        (np.zeros((0, 4, 4, 3), np.uint8), "images is empty; expected at least one image"),
        (torch.zeros(0, 3, 4, 4), "images is empty; expected at least one image"),
        (Items([]), "images is empty; expected at least one image"),
        (
            np.zeros((3, 4, 3), np.uint8),
            "images is an array of shape (3, 4, 3), which could have its channels first or last; "
            "pass a tensor with its channels first",
        ),
        (np.zeros((9, 3, 4, 3), np.uint8), "which could have its channels first or last"),
        (
            np.zeros((2, 3, 8, 8), np.uint8),
            "images is an array of shape (2, 3, 8, 8); expected (H, W, C) or (N, H, W, C)",
        ),
        (
            torch.zeros(2, 8, 8, 3),
            "images is a tensor of shape (2, 8, 8, 3); expected (C, H, W) or (N, C, H, W)",
        ),
        (
            torch.zeros(3, 8, 8),
            "images is a tensor of shape (3, 8, 8); expected (N, C, H, W): pass images[None]",
        ),
        (np.full((1, 4, 4, 3), 1.5), "images has floats from 1.5 to 1.5; expected 0 to 1"),
        (np.full((1, 4, 4, 3), -0.5), "images has floats from -0.5 to -0.5; expected 0 to 1"),
        (np.full((1, 4, 4, 3), np.nan), "images has floats from nan to nan; expected 0 to 1"),
        (
            np.zeros((1, 4, 4, 3), np.int32),
            "images has dtype torch.int32; expected uint8 from 0 to 255, floats from 0",
        ),
        (
            Items([np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 2.0)]),
            "images[1] has floats from 2 to 2",
        ),
    ],
)
def test_a_wrong_value_is_refused_and_named(images, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        compute_channel_stats(images)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("images", "text"),
    [
        (7, "images is a int; expected an array, a tensor, a Dataset or a DataLoader"),
        (Items(["cat.jpg"]), "images[0] is a str; expected a PIL image, an array or a tensor"),
    ],
)
def test_a_wrong_type_is_refused_and_named(images, text):
    with pytest.raises(TypeError, match=re.escape(text)):
        compute_channel_stats(images)


@pytest.mark.bad_input
def test_one_pixel_has_no_deviation_of_its_own():
    with pytest.raises(ValueError, match="an image has one pixel, which has no standard dev"):
        compute_channel_stats(torch.zeros(5, 3, 1, 1), std="per_image")


@pytest.mark.bad_input
def test_an_unknown_deviation_is_refused():
    with pytest.raises(ValueError, match="std is 'image'; expected one of 'pixel', 'per_image'"):
        compute_channel_stats(torch.zeros(5, 3, 4, 4), std="image")


@pytest.mark.bad_input
def test_components_refuse_what_the_statistics_refuse():
    with pytest.raises(ValueError, match="images is empty; expected at least one image"):
        compute_color_components(torch.zeros(0, 3, 4, 4))
    with pytest.raises(ValueError, match="images has floats from 2 to 2; expected 0 to 1"):
        compute_color_components(torch.full((1, 3, 4, 4), 2.0))
    with pytest.raises(TypeError, match="images is a int; expected an array, a tensor"):
        compute_color_components(7)


# Channels, samples, weights of classes


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_each_channel_has_its_statistics(channels):
    images = torch.rand(6, channels, 4, 5, dtype=torch.float64, generator=seeded())
    stats = compute_channel_stats(images, channels=channels)
    components = compute_color_components(images, channels=channels)
    assert np.allclose(stats.mean, images.mean((0, 2, 3)))
    assert np.allclose(stats.std, images.std((0, 2, 3), correction=0))
    assert np.shape(components.directions) == (channels, channels)


@pytest.mark.bad_input
def test_grey_and_coloured_arrays_together_are_refused():
    images = [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.uint8)]
    with pytest.raises(ValueError, match="images have 1 channels and 3; expected the same in all"):
        compute_channel_stats(images)
    assert len(compute_channel_stats(images, channels=3).mean) == 3


def test_items_may_be_mappings():
    images = [{"image": np.full((8, 8, 3), 255, np.uint8), "label": 0}]
    assert compute_channel_stats(Items(images)).mean == (1.0, 1.0, 1.0)


class Unsized(IterableDataset):
    def __iter__(self):
        yield torch.ones(3, 4, 4), 0


def test_a_loader_over_a_stream_has_no_length():
    assert compute_channel_stats(DataLoader(Unsized(), batch_size=1)).count == 1


def test_a_sample_of_photos_is_seeded_and_of_the_size_that_is_asked_for(tmp_path):
    part = open_parts(write_class_folders(tmp_path, count=20, size=(100, 100))).train
    same, again, other = (measure_pixels(part, sample=10, seed=seed) for seed in (0, 0, 1))
    assert (same, same.count) == (again, 10)
    assert same.mean != other.mean
    assert measure_pixels(part, sample=100) == measure_pixels(part)
    assert measure_pixels(part).count == 40


def test_images_in_memory_are_all_measured():
    assert measure_pixels(in_memory(random_batch(20, 4, 4)), sample=5).count == 20


def test_bad_photos_can_be_left_out(tmp_path):
    root = write_class_folders(tmp_path, count=5, size=(100, 100))
    part = open_parts(root).train
    (root / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"0\.png cannot be read"):
        measure_pixels(part)
    assert measure_pixels(part, skip_bad=True).count == 9


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda x: np.array(x, np.uint8)])
def test_class_weights_are_those_of_scikit_learn(kind):
    labels = [0, 0, 0, 1, 2, 2]
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert np.allclose(compute_class_weights(kind(labels)), expected)


def test_class_weights_of_a_set_and_of_a_class_without_images():
    weights = compute_class_weights(replace(in_memory(random_batch(4, 4, 4)), classes=tuple("abc")))
    assert weights.tolist() == pytest.approx([2 / 3, 2 / 3, 0])


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ([], "labels has shape (0,)"),
        ([0.5], "dtype torch.float32; expected integers (N,)"),
        ([[0]], "labels has shape (1, 1)"),
        ([-1, 0], "labels run from -1 to 0"),
    ],
)
def test_labels_that_are_none_are_refused(labels, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        compute_class_weights(labels)
