"""The promises of the transforms: torchvision's numbers, a batch at a time."""

import io
import json
import re

import numpy as np
import pytest
import torch
from helpers import exif, random_pixels, smooth_pixels
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from alexnet_lib.data.augmentation import (
    Augmentation,
    ColorNoise,
    CutMix,
    HorizontalFlip,
    Mixing,
    Mixup,
    RandomCrop,
    RandomErasing,
    TrivialAugment,
)
from alexnet_lib.data.images import image_to_tensor
from alexnet_lib.data.preprocess import Preprocess
from alexnet_lib.data.statistics import ColorComponents
from alexnet_lib.kernels import cpu as kernels

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)

seeds = st.integers(0, 2**32 - 1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch_of(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """A uint8 batch of random pixels."""
    shape = (count, 3, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=seeded(seed))


def of_dtype(images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return images if dtype == torch.uint8 else images.to(dtype) / 255


def as_tutorial(image: np.ndarray) -> torch.Tensor:
    """What the tutorial does to an image, through torchvision."""
    steps = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    steps += [v2.Resize((227, 227)), v2.Normalize(MEAN, STD)]
    return v2.Compose(steps)(Image.fromarray(image)).as_subclass(torch.Tensor)


def reopened(image: Image.Image, kind: str = "png", **options) -> Image.Image:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(file)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (300, 400), (100, 400)])
def test_a_batch_equals_the_tutorials_images_one_by_one(height, width):
    images = np.stack([random_pixels(height, width, seed) for seed in range(3)])
    preprocess = Preprocess(fit="squash", mean=MEAN, std=STD)
    expected = torch.stack([as_tutorial(image) for image in images])
    torch.testing.assert_close(preprocess(images), expected, rtol=0, atol=1e-5)


@given(height=st.integers(1, 40), width=st.integers(1, 40), fit=st.sampled_from(["crop", "squash"]))
def test_one_image_equals_its_place_in_a_batch(height, width, fit):
    images = np.stack([random_pixels(height, width, seed) for seed in range(3)])
    preprocess = Preprocess(20, 16, fit, mean=MEAN, std=STD)
    batch = preprocess(images)
    assert batch.shape == (3, 3, 16, 16)
    torch.testing.assert_close(preprocess(images[1]), batch[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(200, 300), (300, 200), (50, 75)])
def test_crop_is_torchvisions_shorter_side_and_centre_crop(height, width):
    # The longer side becomes 150 and the margins 25 exactly, so that no rounding differs.
    image = torch.from_numpy(random_pixels(height, width)).movedim(-1, 0)
    expected = v2.Compose([v2.Resize(100), v2.CenterCrop(100)])(image / 255)
    torch.testing.assert_close(Preprocess(100, 100)(image), expected, rtol=0, atol=1e-5)


@given(height=st.integers(40, 120), width=st.integers(40, 120))
def test_crop_differs_from_torchvisions_by_rounding_alone(height, width):
    # torchvision cuts the longer side's fraction off where this rounds it, and rounds the
    # margin where this cuts it: at most one pixel of this image's smooth slopes.
    image = torch.from_numpy(smooth_pixels(height, width)).movedim(-1, 0) / 255
    expected = v2.Compose([v2.Resize(64), v2.CenterCrop(64)])(image)
    slope = max(expected.diff(dim=-1).abs().max(), expected.diff(dim=-2).abs().max()).item()
    difference = (Preprocess(64, 64)(image) - expected).abs().max().item()
    assert difference <= slope + 1e-5


def test_crop_keeps_the_aspect_ratio():
    image = np.zeros((60, 100, 3), np.uint8)
    image[20:40, 40:60] = 255  # a square in the middle
    inside = Preprocess(30, 30)(image)[0] > 0.5
    assert inside.any(0).sum() == inside.any(1).sum() == 10


def test_squash_forces_both_sides():
    image = np.zeros((60, 120, 3), np.uint8)
    image[20:40, 48:72] = 255
    inside = Preprocess(30, 30, "squash")(image)[0] > 0.5
    assert (inside.any(0).sum(), inside.any(1).sum()) == (6, 10)


def test_a_resize_above_the_image_size_takes_the_centre():
    image = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Preprocess(12, 8)(image), image[:, 2:10, 2:10])


def test_a_scale_of_255_gives_the_papers_raw_values():
    image = random_pixels(8, 8)
    raw = Preprocess(8, 8, scale=255.0, mean=(120.0, 110.0, 100.0))(image)
    expected = (
        torch.from_numpy(image).movedim(-1, 0) - torch.tensor([120.0, 110, 100])[:, None, None]
    )
    torch.testing.assert_close(raw, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_floating_type_gives_float32(dtype):
    result = Preprocess(8, 8)(torch.full((2, 3, 8, 8), 0.5, dtype=dtype))
    assert result.dtype == torch.float32
    assert (result == 0.5).all()


def test_an_image_is_left_as_it_was():
    image = random_pixels(8, 8)
    before = image.copy()
    Preprocess(8, 8, mean=MEAN, std=STD)(image)
    assert np.array_equal(image, before)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"]
)
def test_every_8_bit_mode_becomes_what_pillow_shows(mode):
    image = Image.fromarray(random_pixels(6, 8)).convert(mode)
    expected = torch.from_numpy(np.array(image.convert("RGB"))).movedim(-1, 0)
    assert torch.equal(image_to_tensor(image), expected)


def test_grey_fills_three_channels():
    grey = random_pixels(6, 8)[..., 0]
    assert np.array_equal(image_to_tensor(Image.fromarray(grey)).numpy(), np.stack([grey] * 3))


def test_a_palette_gives_its_colours():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 150, 100])
    image.putdata([1, 0])
    assert image_to_tensor(image)[:, 0].T.tolist() == [[200, 150, 100], [10, 20, 30]]


def test_a_palette_with_transparency_is_read_without_a_warning():
    image = Image.fromarray(random_pixels(6, 8)).quantize(8)
    transparent = reopened(image, transparency=bytes([0, 100, 200]))
    assert torch.equal(image_to_tensor(transparent), image_to_tensor(image))


def test_alpha_is_dropped():
    pixels = random_pixels(6, 8)
    image = Image.fromarray(np.dstack([pixels, np.zeros((6, 8), np.uint8)]))
    assert np.array_equal(image_to_tensor(image).numpy(), pixels.transpose(2, 0, 1))


def test_cmyk_becomes_rgb():
    image = Image.new("CMYK", (2, 2), (255, 0, 0, 0))
    assert image_to_tensor(image)[:, 0, 0].tolist() == [0, 255, 255]


@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
def test_16_bit_grey_is_scaled_and_not_clipped(byte_order):
    grey = np.array([[0, 255, 256], [32_768, 40_000, 65_535]], dtype=byte_order)
    result = image_to_tensor(Image.fromarray(grey))
    assert result.tolist() == [[[0, 0, 1], [128, 156, 255]]] * 3


@pytest.mark.parametrize(
    ("orientation", "shown"),
    [
        (1, lambda stored: stored),
        (2, lambda stored: stored[:, ::-1]),
        (3, lambda stored: stored[::-1, ::-1]),
        (6, lambda stored: np.rot90(stored, -1)),
        (8, np.rot90),
    ],
)
def test_exif_rotation_is_honoured(orientation, shown):
    stored = random_pixels(6, 8)
    image = reopened(Image.fromarray(stored), exif=exif(orientation))
    assert np.array_equal(image_to_tensor(image).numpy(), shown(stored).transpose(2, 0, 1))


def test_exif_rotation_of_16_bit_grey_is_honoured():
    stored = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1_000
    image = reopened(Image.fromarray(stored), exif=exif(6))
    assert np.array_equal(image_to_tensor(image)[0].numpy(), np.rot90(stored, -1) >> 8)


def test_an_array_has_its_channels_moved_to_the_front():
    pixels = random_pixels(6, 8)
    assert np.array_equal(image_to_tensor(pixels).numpy(), pixels.transpose(2, 0, 1))


def test_a_writable_array_and_a_tensor_share_their_memory():
    pixels = random_pixels(6, 8)
    tensor = torch.from_numpy(pixels).movedim(-1, 0)
    assert image_to_tensor(pixels).data_ptr() == pixels.ctypes.data
    assert image_to_tensor(tensor).data_ptr() == tensor.data_ptr()


def test_a_read_only_array_is_taken():
    pixels = random_pixels(6, 8)
    pixels.flags.writeable = False
    assert np.array_equal(image_to_tensor(pixels).numpy(), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("writeable", [True, False])
def test_an_array_with_negative_strides_is_taken(writeable):
    pixels = random_pixels(6, 8)
    pixels.flags.writeable = writeable
    mirrored, bgr = pixels[:, ::-1], pixels[..., ::-1]
    assert np.array_equal(image_to_tensor(mirrored).numpy(), mirrored.transpose(2, 0, 1))
    assert np.array_equal(image_to_tensor(bgr).numpy(), bgr.transpose(2, 0, 1))


def test_a_preprocess_survives_json():
    preprocess = Preprocess(256, 227, "squash", 255.0, (1.5, 2.5, 3.5), (0.1, 0.2, 0.3), edge=3)
    written = json.dumps(preprocess.to_dict())
    assert Preprocess.from_dict(json.loads(written)) == preprocess


# Crops, edges and views


@pytest.fixture(params=["compiled", "away"])
def kernels_are(request, monkeypatch):
    """With the compiled kernels and without them."""
    if request.param == "away":
        monkeypatch.setattr(kernels, "library", lambda values=None: None)
    else:
        kernels.library()


def whole_images(preprocess: Preprocess, images: torch.Tensor) -> torch.Tensor:
    """Resized and normalised, and not cropped."""
    return preprocess.normalized(preprocess.resized(images))


@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    window=st.integers(1, 12),
    room=st.integers(0, 9),
    edge=st.integers(0, 3),
    fit=st.sampled_from(["crop", "squash"]),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    seed=seeds,
)
def test_a_crop_is_the_window_of_the_whole_image_at_its_corner(
    kernels_are, shape, window, room, edge, fit, dtype, memory_format, seed
):
    preprocess = Preprocess(window + room, window + edge, fit, 1.0, MEAN, STD, edge)
    images = of_dtype(batch_of(3, *shape, seed), dtype)
    corners = torch.randint(0, room + 1, (3, 2), generator=seeded(seed))
    made = preprocess.network_input(images, memory_format=memory_format, corners=corners)
    assert made.shape == (3, 3, window + edge, window + edge)
    assert made.is_contiguous(memory_format=memory_format)
    whole = whole_images(preprocess, images)
    for image, (top, left), result in zip(whole, corners.tolist(), made, strict=True):
        expected = image[:, top : top + window, left : left + window]
        torch.testing.assert_close(result[:, :window, :window], expected, rtol=0, atol=2e-5)
        assert not result[:, window:].any()
        assert not result[:, :, window:].any()


@given(window=st.integers(1, 12), room=st.integers(0, 9), side=st.integers(1, 12))
def test_without_corners_the_crop_is_the_centre(kernels_are, window, room, side):
    preprocess = Preprocess(window + room, window, "crop", 1.0, MEAN, STD)
    images = batch_of(2, side, side)
    middle = torch.full((2, 2), room // 2)
    torch.testing.assert_close(
        preprocess.network_input(images), preprocess.network_input(images, corners=middle)
    )


def test_corners_are_no_part_of_the_images_memory(kernels_are):
    corners = torch.tensor([[0, 4], [2, 1]])
    before = corners.clone()
    Preprocess(12, 8).network_input(batch_of(2, 6, 6), corners=corners)
    assert torch.equal(corners, before)


def test_the_released_codes_224_pixels_are_227_with_three_zeros_at_the_right_and_the_bottom():
    image = batch_of(1, 256, 256)
    preprocess = Preprocess(256, 227, mean=MEAN, std=STD, edge=3)
    made = preprocess(image)
    assert preprocess.window == 224
    assert made.shape == (1, 3, 227, 227)
    assert torch.equal(made[..., :224, :224], Preprocess(256, 224, mean=MEAN, std=STD)(image))
    assert not made[..., 224:, :].any()
    assert not made[..., :, 224:].any()


def test_one_image_has_an_edge_too():
    image = batch_of(1, 6, 6)
    preprocess = Preprocess(9, 8, mean=MEAN, std=STD, edge=2)
    torch.testing.assert_close(preprocess(image[0]), preprocess(image)[0])


def test_an_edge_lets_an_image_be_smaller_than_the_input():
    made = Preprocess(6, 8, mean=MEAN, std=STD, edge=2)(batch_of(1, 6, 6))
    assert made.shape == (1, 3, 8, 8)


@given(number=st.sampled_from([1, 2, 10]), room=st.integers(1, 5), edge=st.integers(0, 3))
def test_there_are_as_many_views_as_asked_for_each_a_batch_of_inputs(number, room, edge):
    preprocess = Preprocess(6 + room, 6 + edge, edge=edge)
    images = torch.randn(2, 3, 6 + room, 6 + room, generator=seeded())
    views = list(preprocess.views(images, number))
    assert [view.shape for view in views] == [(2, 3, 6 + edge, 6 + edge)] * number


@given(number=st.sampled_from([1, 2]), window=st.integers(1, 9), room=st.integers(0, 5))
def test_the_first_of_one_or_two_views_is_what_the_network_gets_otherwise(number, window, room):
    preprocess = Preprocess(window + room, window + 1, "crop", 1.0, MEAN, STD, edge=1)
    images = batch_of(2, 7, 7)
    first = next(preprocess.views(whole_images(preprocess, images), number))
    torch.testing.assert_close(first, preprocess(images), rtol=0, atol=2e-5)


def test_the_second_view_is_the_first_ones_picture_mirrored():
    images = torch.randn(2, 3, 9, 9, generator=seeded())
    first, second = Preprocess(9, 8, edge=2).views(images, 2)
    assert torch.equal(second[..., :6, :6], first[..., :6, :6].flip(-1))


@pytest.mark.parametrize("number", [2, 10])
def test_an_edge_stays_at_the_right_and_the_bottom_of_mirrored_views(number):
    images = torch.rand(2, 3, 9, 9, generator=seeded()) + 1
    for view in Preprocess(9, 8, edge=2).views(images, number):
        assert (view[..., :6, :6] >= 1).all()
        assert not view[..., 6:, :].any()
        assert not view[..., :, 6:].any()


@given(window=st.integers(1, 8), room=st.integers(1, 5))
def test_ten_views_are_the_four_corners_and_the_centre_each_with_its_mirror_image(window, room):
    images = torch.randn(2, 3, window + room, window + room, generator=seeded())
    views = list(Preprocess(window + room, window).views(images, 10))
    start, end, middle = slice(window), slice(room, None), slice(room // 2, room // 2 + window)
    corners = [(start, start), (start, end), (end, start), (end, end), (middle, middle)]
    expected = [images[..., rows, columns] for rows, columns in corners]
    for upright, mirrored, picture in zip(views[::2], views[1::2], expected, strict=True):
        assert torch.equal(upright, picture)
        assert torch.equal(mirrored, picture.flip(-1))


# Augmentations in general

COMPONENTS = ColorComponents(
    (0.4, 0.1, 0.05), ((0.6, 0.8, 0.0), (0.0, 0.0, 1.0), (0.8, -0.6, 0.0)), 10
)
CHANGES = (
    HorizontalFlip(),
    ColorNoise(COMPONENTS),
    TrivialAugment(),
    RandomErasing(),
)
MIXTURES = (Mixup(), CutMix())


def name_of(value) -> str:
    return type(value).__name__


any_augmentation = pytest.mark.parametrize(
    "augmentation", [*CHANGES, RandomCrop(), *MIXTURES], ids=name_of
)
any_change = pytest.mark.parametrize("augmentation", CHANGES, ids=name_of)
any_mixture = pytest.mark.parametrize("augmentation", MIXTURES, ids=name_of)


def suited(augmentation: Augmentation, images: torch.Tensor) -> torch.Tensor:
    """uint8 images as what the augmentation is applied to."""
    return images if augmentation.on == "pixels" else images / 255 + 1


@any_augmentation
def test_draws_are_a_row_for_each_image_and_follow_the_generator(augmentation):
    draws = [augmentation.draw(100, seeded(seed)) for seed in (1, 1, 2)]
    assert len(draws[0]) == 100
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@any_augmentation
def test_draws_differ_from_image_to_image_and_from_call_to_call(augmentation):
    generator = seeded()
    first, second = augmentation.draw(100, generator), augmentation.draw(100, generator)
    assert len(first.unique(dim=0)) > 1
    assert not torch.equal(first, second)


@any_augmentation
def test_draws_leave_the_global_generators_alone(augmentation):
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()
    augmentation.draw(100, seeded())
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpys)


@any_change
@given(part=st.integers(0, 12), seed=seeds)
def test_a_batchs_result_is_that_of_its_parts(augmentation, part, seed):
    images = suited(augmentation, batch_of(12, 7, 5, seed))
    draws = augmentation.draw(12, seeded(seed))
    parts = [
        augmentation.apply(images[:part], draws[:part]),
        augmentation.apply(images[part:], draws[part:]),
    ]
    assert torch.equal(augmentation.apply(images, draws), torch.cat(parts))


@any_mixture
@given(part=st.integers(1, 11), seed=seeds)
def test_a_mixtures_result_is_that_of_its_parts(augmentation, part, seed):
    images = batch_of(13, 7, 5, seed)
    draws = augmentation.draw(12, seeded(seed))
    mixed, kept = augmentation.mix(images, draws)
    one = augmentation.mix(images[: part + 1], draws[:part])
    other = augmentation.mix(images[part:], draws[part:])
    assert torch.equal(mixed, torch.cat([one[0], other[0]]))
    assert torch.equal(kept, torch.cat([one[1], other[1]]))


@any_change
def test_an_augmentation_leaves_the_images_it_is_given_as_they_were(augmentation):
    images = suited(augmentation, batch_of(12, 7, 5))
    before = images.clone()
    augmentation.apply(images, augmentation.draw(12, seeded()))
    assert torch.equal(images, before)


@any_mixture
def test_a_mixture_leaves_the_images_it_is_given_as_they_were(augmentation):
    images = batch_of(13, 7, 5)
    before = images.clone()
    augmentation.mix(images, augmentation.draw(12, seeded()))
    assert torch.equal(images, before)


@any_change
def test_a_change_of_images_is_an_augmentation_and_no_mixing(augmentation):
    assert isinstance(augmentation, Augmentation)
    assert not isinstance(augmentation, Mixing)


@any_mixture
def test_a_mixture_is_a_mixing_and_no_augmentation(augmentation):
    assert isinstance(augmentation, Mixing)
    assert not isinstance(augmentation, Augmentation)


# RandomCrop


@given(seed=seeds, room=st.integers(0, 40))
def test_corners_lie_from_0_to_the_room(seed, room):
    crop = RandomCrop()
    corners = crop.corners(crop.draw(200, seeded(seed)), room)
    assert corners.shape == (200, 2)
    assert corners.min() >= 0
    assert corners.max() <= room


@given(room=st.integers(0, 1000))
def test_the_smallest_and_the_largest_draw_give_the_first_and_the_last_corner(room):
    # The largest number below 1 that torch.rand gives.
    draws = torch.tensor([[0.0, 1 - 2**-24]])
    assert RandomCrop().corners(draws, room).tolist() == [[0, room]]


def test_all_places_are_reached_about_equally():
    crop = RandomCrop()
    corners = crop.corners(crop.draw(36_000, seeded()), room=5)
    counts = (6 * corners[:, 0] + corners[:, 1]).bincount(minlength=36)
    # 1000 expected: five standard deviations.
    assert (counts - 1000).abs().max() < 160


# HorizontalFlip


images_to_flip = torch.rand(500, 3, 2, 4, generator=torch.Generator().manual_seed(0))


@given(seed=st.integers(0, 2**32 - 1))
def test_a_flip_is_its_own_inverse(seed):
    flip = HorizontalFlip()
    draws = flip.draw(500, torch.Generator().manual_seed(seed))
    once = flip.apply(images_to_flip, draws)
    assert torch.equal(flip.apply(once, draws), images_to_flip)


def test_a_flip_mirrors_left_to_right_the_images_drawn_and_no_others():
    draws = torch.tensor([True, False])
    flipped = HorizontalFlip().apply(images_to_flip[:2], draws)
    assert torch.equal(flipped[0], images_to_flip[0].flip(-1))
    assert torch.equal(flipped[1], images_to_flip[1])


def test_about_half_the_images_are_flipped():
    draws = HorizontalFlip().draw(10_000, torch.Generator().manual_seed(0))
    assert draws.shape == (10_000,)
    # Five standard deviations of a fair coin's 10,000 throws.
    assert abs(draws.sum().item() - 5_000) < 250


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_a_certain_flip_is_certain(probability):
    draws = HorizontalFlip(probability).draw(10_000, torch.Generator().manual_seed(0))
    assert (draws == bool(probability)).all()


# ColorNoise


@given(seed=seeds, dtype=st.sampled_from([torch.uint8, torch.float32]))
def test_color_noise_adds_one_colour_to_all_pixels_of_an_image(seed, dtype):
    noise = ColorNoise(COMPONENTS)
    images = of_dtype(batch_of(5, 4, 6, seed), dtype)
    draws = noise.draw(5, seeded(seed))
    made = noise.apply(images, draws)
    assert made.dtype == torch.float32
    added = made - (images / 255 if dtype == torch.uint8 else images)
    expected = draws[:, :, None, None].expand(5, 3, 4, 6)
    torch.testing.assert_close(added, expected, rtol=0, atol=1e-6)


def test_color_noise_of_strength_0_changes_nothing():
    images = batch_of(5, 4, 6)
    noise = ColorNoise(COMPONENTS, strength=0.0)
    assert torch.equal(noise.apply(images, noise.draw(5, seeded())), images / 255)


@pytest.mark.parametrize("strength", [0.1, 0.5])
def test_the_colours_have_the_components_covariance_times_the_strength_squared(strength):
    draws = ColorNoise(COMPONENTS, strength).draw(50_000, seeded()).double().numpy()
    directions, std = np.array(COMPONENTS.directions), np.array(COMPONENTS.std)
    expected = strength**2 * directions.T @ np.diag(std**2) @ directions
    # Five standard deviations of the largest entry's estimate.
    tolerance = 5 * (2 / 50_000) ** 0.5 * strength**2 * std[0] ** 2
    np.testing.assert_allclose(np.cov(draws.T), expected, rtol=0, atol=tolerance)
    assert np.abs(draws.mean(0)).max() < 5 * strength * std[0] / 50_000**0.5


def test_the_noise_along_each_component_has_its_own_deviation():
    draws = ColorNoise(COMPONENTS).draw(50_000, seeded())
    along = draws @ torch.tensor(COMPONENTS.directions).T
    expected = 0.1 * torch.tensor(COMPONENTS.std)
    torch.testing.assert_close(along.std(0), expected, rtol=0.02, atol=0)


def test_color_noise_may_leave_the_range_from_0_to_1():
    images = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    made = ColorNoise(COMPONENTS).apply(images, torch.tensor([[0.5, -1.5, 0.0]]))
    assert made[0, :, 0, 0].tolist() == [1.5, -0.5, 1.0]


# TrivialAugment


def test_trivial_augment_is_torchvisions_image_by_image():
    images = batch_of(60, 12, 10)
    augment = TrivialAugment()
    draws = augment.draw(60, seeded())
    expected = []
    for image, seed in zip(images, draws.tolist(), strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            expected.append(v2.TrivialAugmentWide()(image))
    made = augment.apply(images, draws)
    assert torch.equal(made, torch.stack(expected))
    assert made.dtype == torch.uint8
    assert not torch.equal(made, images)


def test_trivial_augment_takes_floating_images_as_bytes():
    images = batch_of(20, 8, 8)
    augment = TrivialAugment()
    draws = augment.draw(20, seeded())
    # To the nearest one.
    for apart in (-0.4, 0.0, 0.4):
        made = augment.apply((images + apart) / 255, draws)
        assert made.dtype == torch.uint8
        assert torch.equal(made, augment.apply(images, draws))


def test_trivial_augment_cuts_off_what_lies_outside_0_to_1():
    images = torch.where(batch_of(20, 8, 8) < 128, -0.5, 1.5)
    augment = TrivialAugment()
    draws = augment.draw(20, seeded())
    cut = (255 * images.clamp(0, 1)).byte()
    assert torch.equal(augment.apply(images, draws), augment.apply(cut, draws))


def test_trivial_augment_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    augment = TrivialAugment()
    augment.apply(batch_of(8, 6, 6), augment.draw(8, seeded()))
    assert torch.equal(torch.get_rng_state(), before)


# RandomErasing


def erased_pixels(images: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """Which pixels (batch, h, w) were erased; that all others are as they were."""
    gone = (made == 0).all(1)
    assert torch.equal(made, images * ~gone[:, None])
    return gone


def positive_images(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=seeded(seed)) + 1


@given(seed=seeds, height=st.integers(1, 20), width=st.integers(1, 20))
def test_what_is_erased_is_one_rectangle_of_zeros_and_nothing_else_changes(seed, height, width):
    erasing = RandomErasing(probability=1.0)
    images = positive_images(6, height, width, seed)
    gone = erased_pixels(images, erasing.apply(images, erasing.draw(6, seeded(seed))))
    for pixels in gone:
        rows, columns = pixels.any(1), pixels.any(0)
        assert torch.equal(pixels, rows[:, None] & columns)
        for line in (rows, columns):
            places = line.nonzero()[:, 0]
            assert places.numel() == 0 or places[-1] - places[0] + 1 == len(places)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_erasing_keeps_dtype_and_memory_format(dtype, memory_format):
    erasing = RandomErasing(probability=1.0)
    images = positive_images(6, 8, 8).to(dtype, memory_format=memory_format)
    made = erasing.apply(images, erasing.draw(6, seeded()))
    assert made.dtype == dtype
    assert made.is_contiguous(memory_format=memory_format)
    assert erased_pixels(images, made).any()


def test_about_half_the_images_are_erased():
    erasing = RandomErasing()
    images = torch.ones(10_000, 3, 8, 8)
    gone = erased_pixels(images, erasing.apply(images, erasing.draw(10_000, seeded())))
    assert abs(gone.any(2).any(1).sum().item() - 5_000) < 250


def test_erasing_is_as_certain_as_its_probability():
    images = positive_images(1000, 20, 20)
    for probability in (0.0, 1.0):
        erasing = RandomErasing(probability)
        gone = erased_pixels(images, erasing.apply(images, erasing.draw(1000, seeded())))
        assert (gone.any(2).any(1) == bool(probability)).all()


def erased_sides(area, ratio, side: int = 100) -> tuple[torch.Tensor, torch.Tensor]:
    """Heights and widths of 500 rectangles, in pixels."""
    erasing = RandomErasing(1.0, area, ratio)
    images = torch.ones(500, 3, side, side)
    gone = erased_pixels(images, erasing.apply(images, erasing.draw(500, seeded())))
    return gone.any(2).sum(1), gone.any(1).sum(1)


def test_the_erased_share_is_spread_over_its_bounds():
    height, width = erased_sides((0.1, 0.3), (0.9, 1.1))
    share = height * width / 100**2
    # A rounded side is half a pixel off.
    assert 0.09 < share.min() < 0.11
    assert 0.29 < share.max() < 0.31
    assert share.mean().item() == pytest.approx(0.2, abs=0.01)


def test_height_over_width_is_spread_over_its_bounds_and_as_often_above_1_as_below():
    height, width = erased_sides((0.1, 0.1), (0.5, 2.0))
    ratio = height / width
    assert 0.47 < ratio.min() < 0.53
    assert 1.9 < ratio.max() < 2.1
    assert ratio.log().mean().abs() < 0.1


def test_a_side_longer_than_the_images_is_cut():
    height, width = erased_sides((0.5, 0.5), (4.0, 4.0), side=20)
    assert set(height.tolist()) == {20}
    assert set(width.tolist()) == {7}


def test_rectangles_reach_every_pixel():
    erasing = RandomErasing(probability=1.0)
    images = torch.ones(5000, 3, 16, 24)
    gone = erased_pixels(images, erasing.apply(images, erasing.draw(5000, seeded())))
    assert gone.any(0).all()


# Mixup and CutMix


@given(seed=seeds, dtype=st.sampled_from([torch.uint8, torch.float32]))
def test_mixup_is_the_share_of_an_image_and_the_rest_of_the_next(seed, dtype):
    mixup = Mixup(alpha=1.0)
    images = of_dtype(batch_of(7, 4, 5, seed), dtype)
    draws = mixup.draw(6, seeded(seed))
    mixed, kept = mixup.mix(images, draws)
    unit = images / 255 if dtype == torch.uint8 else images
    share = kept[:, None, None, None]
    assert mixed.dtype == torch.float32
    assert torch.equal(kept, draws)
    torch.testing.assert_close(mixed, share * unit[:-1] + (1 - share) * unit[1:], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("kept", "place"), [(1.0, 0), (0.0, 1)])
def test_mixup_of_all_or_nothing_is_one_of_the_two_images(kept, place):
    images = batch_of(2, 4, 5)
    mixed, _ = Mixup().mix(images, torch.tensor([kept]))
    assert torch.equal(mixed[0], images[place] / 255)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_the_shares_have_the_beta_distributions_moments(alpha):
    shares = Mixup(alpha).draw(20_000, seeded()).double()
    assert ((shares >= 0) & (shares <= 1)).all()
    assert shares.mean().item() == pytest.approx(0.5, abs=0.015)
    assert shares.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


@given(
    seed=seeds,
    dtype=st.sampled_from([torch.uint8, torch.float32]),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
)
def test_cutmix_pastes_one_rectangle_and_returns_the_share_of_the_pixels_kept(
    seed, dtype, height, width
):
    # All pixels of image i are 10 i, so that a pixel says where it is from.
    numbers = 10 * torch.arange(7, dtype=torch.uint8)
    images = of_dtype(numbers[:, None, None, None].expand(7, 3, height, width), dtype)
    cutmix = CutMix()
    mixed, kept = cutmix.mix(images, cutmix.draw(6, seeded(seed)))
    assert mixed.dtype == dtype
    pasted = (mixed == images[1:]).all(1)
    assert torch.equal(mixed, torch.where(pasted[:, None], images[1:], images[:-1]))
    for pixels, share in zip(pasted, kept.tolist(), strict=True):
        rows, columns = pixels.any(1), pixels.any(0)
        assert torch.equal(pixels, rows[:, None] & columns)
        assert share == pytest.approx(1 - pixels.float().mean().item(), abs=1e-6)


def test_cutmix_pastes_the_next_images_pixels_at_their_own_places():
    images = batch_of(2, 8, 8)
    # A square of half the side, in the middle.
    mixed, kept = CutMix().mix(images, torch.tensor([[0.5, 0.5, 0.5]]))
    expected = images[0].clone()
    expected[:, 2:6, 2:6] = images[1, :, 2:6, 2:6]
    assert torch.equal(mixed[0], expected)
    assert kept.tolist() == [0.75]


def test_a_rectangle_over_the_edge_is_cut_and_the_share_is_that_of_the_pixels_kept():
    mixed, kept = CutMix().mix(batch_of(2, 8, 8), torch.tensor([[0.0, 0.5, 0.5]]))
    assert kept.tolist() == [1 - 2 * 4 / 64]
    assert len(mixed) == 1


def test_cutmixs_rectangles_follow_the_beta_distribution_and_have_their_centres_everywhere():
    draws = CutMix(alpha=1.0).draw(20_000, seeded()).double()
    assert ((draws >= 0) & (draws <= 1)).all()
    area = draws[:, 2].square()
    for uniform in (draws[:, 0], draws[:, 1], area):
        assert uniform.mean().item() == pytest.approx(0.5, abs=0.015)
        assert uniform.var().item() == pytest.approx(1 / 12, rel=0.05)


# Wrong input


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"image_size": 0}, "image_size is 0; expected an integer of at least 1"),
        ({"image_size": 22.5}, "image_size is 22.5; expected an integer of at least 1"),
        ({"resize": 200}, "resize is 200; expected at least 227, what the network sees"),
        ({"resize": 223, "edge": 3}, "resize is 223; expected at least 224, what the network sees"),
        ({"resize": 256.0}, "resize is 256.0; expected an integer of at least 1"),
        ({"edge": -1}, "edge is -1; expected an integer of at least 0"),
        ({"edge": 0.5}, "edge is 0.5; expected an integer of at least 0"),
        ({"edge": 227}, "edge is 227; expected less than image_size, 227"),
        ({"fit": "stretch"}, "'stretch'; expected 'crop' or 'squash'"),
        ({"scale": 0.0}, "scale is 0.0; expected a finite number above 0"),
        ({"scale": float("inf")}, "scale is inf; expected a finite number above 0"),
        ({"mean": 0.5}, "mean is 0.5; expected three finite numbers"),
        ({"mean": (0.5, 0.5)}, "mean is (0.5, 0.5); expected three finite numbers"),
        ({"std": (1.0, 1.0, float("nan"))}, "std is (1.0, 1.0, nan); expected three finite"),
        ({"std": (1.0, 0.0, 1.0)}, "std is (1.0, 0.0, 1.0); expected three numbers above 0"),
    ],
)
def test_a_field_out_of_range_is_named(fields, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        Preprocess(**fields)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("image", "text"),
    [
        (np.zeros((8, 8), np.uint8), "image is an array of shape (8, 8); expected (H, W, 3)"),
        (np.zeros((3, 8, 8), np.uint8), "image is an array of shape (3, 8, 8); expected (H, W, 3)"),
        (np.zeros((8, 8, 4), np.uint8), "image is an array of shape (8, 8, 4)"),
        (np.zeros((0, 8, 3), np.uint8), "image is an array of shape (0, 8, 3)"),
        (torch.zeros(8, 8, 3), "image is a tensor of shape (8, 8, 3); expected (3, H, W)"),
        (torch.zeros(1, 1, 3, 8, 8), "image is a tensor of shape (1, 1, 3, 8, 8)"),
        (np.zeros((8, 8, 3), np.int64), "image has dtype torch.int64; expected uint8"),
        (np.zeros((8, 8, 3), bool), "image has dtype torch.bool; expected uint8"),
        (np.full((8, 8, 3), 255.0), "image has floats from 255 to 255; expected 0 to 1"),
        (torch.full((3, 8, 8), -0.1), "image has floats from -0.1 to -0.1; expected 0 to 1"),
        (torch.full((3, 8, 8), float("nan")), "image has floats from nan to nan"),
        (Image.new("F", (8, 8)), "image is a PIL image of mode 'F', whose range is not defined"),
        (Image.new("I", (8, 8)), "image is a PIL image of mode 'I', whose range is not defined"),
    ],
)
def test_a_wrong_image_is_refused_and_named(image, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        Preprocess()(image)


@pytest.mark.bad_input
def test_a_path_is_no_image():
    with pytest.raises(TypeError, match="photo is a str; expected a PIL image, an array or a ten"):
        image_to_tensor("cat.jpg", "photo")


@pytest.mark.bad_input
@pytest.mark.parametrize("change", [{"std": None}, {"colour": "red"}, {"mean": ["a", "b", "c"]}])
def test_other_data_is_no_preprocess(change):
    with pytest.raises(ValueError, match="data is not a Preprocess"):
        Preprocess.from_dict({**Preprocess().to_dict(), **change})


@pytest.mark.bad_input
@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_an_impossible_probability_is_refused(probability):
    with pytest.raises(ValueError, match=f"probability is {probability}; expected 0 to 1"):
        HorizontalFlip(probability)


@pytest.mark.bad_input
@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_an_impossible_probability_of_erasing_is_refused(probability):
    with pytest.raises(ValueError, match=f"probability is {probability}; expected 0 to 1"):
        RandomErasing(probability)


@pytest.mark.bad_input
@pytest.mark.parametrize("area", [(0.0, 0.3), (0.3, 0.2), (0.1, 1.1), (float("nan"), 0.5)])
def test_an_impossible_area_is_refused(area):
    text = f"area is {area!r}; expected two rising shares up to 1"
    with pytest.raises(ValueError, match=re.escape(text)):
        RandomErasing(area=area)


@pytest.mark.bad_input
@pytest.mark.parametrize("ratio", [(0.0, 1.0), (2.0, 1.0), (1.0, float("inf"))])
def test_an_impossible_ratio_is_refused(ratio):
    text = f"ratio is {ratio!r}; expected two rising numbers above 0"
    with pytest.raises(ValueError, match=re.escape(text)):
        RandomErasing(ratio=ratio)


@pytest.mark.bad_input
@pytest.mark.parametrize("strength", [-0.1, float("inf"), float("nan")])
def test_an_impossible_strength_is_refused(strength):
    text = f"strength is {strength}; expected a finite number from 0"
    with pytest.raises(ValueError, match=re.escape(text)):
        ColorNoise(COMPONENTS, strength)


@pytest.mark.bad_input
@pytest.mark.parametrize("kind", [Mixup, CutMix])
@pytest.mark.parametrize("alpha", [0.0, -1.0, float("inf"), float("nan")])
def test_an_impossible_alpha_is_refused(kind, alpha):
    text = f"alpha is {alpha}; expected a finite number above 0"
    with pytest.raises(ValueError, match=re.escape(text)):
        kind(alpha)


@pytest.mark.bad_input
@pytest.mark.parametrize("number", [0, 3, 5, -1])
def test_another_number_of_views_is_refused(number):
    with pytest.raises(ValueError, match=f"views is {number}; expected one of 1, 2, 10"):
        list(Preprocess(9, 6).views(torch.zeros(1, 3, 9, 9), number))


@pytest.mark.bad_input
@pytest.mark.parametrize("preprocess", [Preprocess(9, 9), Preprocess(9, 11, edge=2)])
def test_ten_views_of_images_that_leave_no_room_are_refused(preprocess):
    text = "views is 10, but resize is 9, all of which the network sees"
    with pytest.raises(ValueError, match=text):
        list(preprocess.views(torch.zeros(1, 3, 9, 9), 10))


@pytest.mark.bad_input
@pytest.mark.parametrize("corner", [[-1, 0], [0, 5]])
def test_a_corner_outside_of_the_resized_image_is_refused(corner):
    preprocess = Preprocess(resize=12, image_size=8)
    corners = torch.tensor([[4, 4], corner])
    with pytest.raises(ValueError, match=r"^corners run from .*; expected 0 to 4$"):
        preprocess.network_input(torch.zeros(2, 3, 6, 6), corners=corners)


@pytest.mark.bad_input
def test_corners_of_another_number_of_images_are_refused():
    corners = torch.zeros(3, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^corners has shape \(3, 2\); expected \(batch, 2\)"):
        Preprocess(12, 8).network_input(torch.zeros(2, 3, 6, 6), corners=corners)
