"""The promises of the random treatments by themselves: what is drawn, and what it does."""

import re

import numpy as np
import pytest
import torch
from helpers import COMPONENTS, of_dtype, random_batch, seeded
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import v2

from alexnet_lib.data.augmentation import (
    Augmentation,
    ColorNoise,
    HorizontalFlip,
    RandomCrop,
    RandomShift,
    TrivialAugment,
)
from alexnet_lib.data.statistics import ColorComponents

seeds = st.integers(0, 2**32 - 1)


CHANGES = (
    HorizontalFlip(),
    RandomShift(),
    ColorNoise(COMPONENTS),
    TrivialAugment(),
)


def name_of(value) -> str:
    return type(value).__name__


any_augmentation = pytest.mark.parametrize("augmentation", [*CHANGES, RandomCrop()], ids=name_of)


any_change = pytest.mark.parametrize("augmentation", CHANGES, ids=name_of)


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
def test_a_batchs_result_is_that_of_its_parts(device, augmentation, part, seed):
    images = random_batch(12, 7, 5, seed).to(device)
    draws = augmentation.draw(12, seeded(seed)).to(device)
    parts = [
        augmentation.apply(images[:part], draws[:part]),
        augmentation.apply(images[part:], draws[part:]),
    ]
    assert torch.equal(augmentation.apply(images, draws), torch.cat(parts))


@any_change
def test_an_augmentation_leaves_the_images_it_is_given_as_they_were(device, augmentation):
    images = random_batch(12, 7, 5).to(device)
    before = images.clone()
    augmentation.apply(images, augmentation.draw(12, seeded()).to(device))
    assert torch.equal(images, before)


@any_change
def test_a_change_of_images_is_an_augmentation(augmentation):
    assert isinstance(augmentation, Augmentation)


# RandomCrop


@given(seed=seeds, margin=st.integers(0, 40))
def test_corners_lie_from_0_to_the_margin(seed, margin):
    crop = RandomCrop()
    corners = crop.corners(crop.draw(200, seeded(seed)), margin)
    assert corners.shape == (200, 2)
    assert corners.min() >= 0
    assert corners.max() <= margin


@given(margin=st.integers(0, 1000))
def test_the_smallest_and_the_largest_draw_give_the_first_and_the_last_corner(margin):
    # The largest number below 1 that torch.rand gives.
    draws = torch.tensor([[0.0, 1 - 2**-24]])
    assert RandomCrop().corners(draws, margin).tolist() == [[0, margin]]


def test_all_places_are_reached_about_equally():
    crop = RandomCrop()
    corners = crop.corners(crop.draw(36_000, seeded()), margin=5)
    counts = (6 * corners[:, 0] + corners[:, 1]).bincount(minlength=36)
    # 1000 expected: five standard deviations.
    assert (counts - 1000).abs().max() < 160


# HorizontalFlip


images_to_flip = torch.rand(500, 3, 2, 4, generator=torch.Generator().manual_seed(0))


@given(seed=st.integers(0, 2**32 - 1))
def test_a_flip_is_its_own_inverse(device, seed):
    flip = HorizontalFlip()
    images, draws = images_to_flip.to(device), flip.draw(500, seeded(seed)).to(device)
    once = flip.apply(images, draws)
    assert torch.equal(flip.apply(once, draws), images)


def test_a_flip_mirrors_left_to_right_the_images_drawn_and_no_others(device):
    images, draws = images_to_flip[:2].to(device), torch.tensor([True, False], device=device)
    flipped = HorizontalFlip().apply(images, draws)
    assert torch.equal(flipped[0], images[0].flip(-1))
    assert torch.equal(flipped[1], images[1])


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


@given(
    seed=seeds,
    height=st.integers(2, 40),
    width=st.integers(2, 40),
    share=st.floats(0.01, 0.5),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
)
def test_a_shift_is_a_crop_out_of_the_image_with_a_reflected_border(
    device, seed, height, width, share, dtype
):
    images = of_dtype(random_batch(9, height, width, seed=seed).to(device), dtype)
    shift = RandomShift(share)
    draws = shift.draw(9, seeded(seed)).to(device)
    most = [min(round(share * side), side - 1) for side in (height, width)]
    padded = np.pad(images.cpu().numpy(), ((0, 0), (0, 0), *((m, m) for m in most)), mode="reflect")
    for image, whole, draw in zip(shift.apply(images, draws), padded, draws.tolist(), strict=True):
        top, left = (int(u * (2 * m + 1)) for u, m in zip(draw, most, strict=True))
        assert np.array_equal(image.cpu(), whole[:, top : top + height, left : left + width])


def test_all_shifts_up_to_an_eighth_occur_about_equally_often(device):
    row = torch.arange(16, dtype=torch.uint8, device=device).expand(1, 1, 16, 16)
    shift = RandomShift()
    images = shift.apply(row.expand(5000, -1, -1, -1), shift.draw(5000, seeded(0)).to(device))
    found = torch.bincount(images[:, 0, 8, 8].int(), minlength=16)
    assert found.nonzero()[:, 0].tolist() == [6, 7, 8, 9, 10]
    assert found[6:11].min() > 900


def test_an_image_of_one_pixel_stays(device):
    image = torch.ones(2, 3, 1, 1, dtype=torch.uint8, device=device)
    assert torch.equal(RandomShift(0.5).apply(image, torch.rand(2, 2, device=device)), image)


@given(seed=seeds, dtype=st.sampled_from([torch.uint8, torch.float32]))
def test_color_noise_adds_one_colour_to_all_pixels_of_an_image(device, seed, dtype):
    noise = ColorNoise(COMPONENTS)
    images = of_dtype(random_batch(5, 4, 6, seed).to(device), dtype)
    draws = noise.draw(5, seeded(seed)).to(device)
    result = noise.apply(images, draws)
    assert result.dtype == torch.float32
    added = result - (images / 255 if dtype == torch.uint8 else images)
    expected = draws[:, :, None, None].expand(5, 3, 4, 6)
    torch.testing.assert_close(added, expected, rtol=0, atol=1e-6)


def test_color_noise_of_strength_0_changes_nothing(device):
    images = random_batch(5, 4, 6).to(device)
    noise = ColorNoise(COMPONENTS, strength=0.0)
    assert torch.equal(noise.apply(images, noise.draw(5, seeded()).to(device)), images / 255)


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


def test_color_noise_may_leave_the_range_from_0_to_1(device):
    images = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8, device=device)
    result = ColorNoise(COMPONENTS).apply(images, torch.tensor([[0.5, -1.5, 0.0]], device=device))
    assert result[0, :, 0, 0].tolist() == [1.5, -0.5, 1.0]


# TrivialAugment


def test_trivial_augment_is_torchvisions_image_by_image(device):
    images = random_batch(60, 12, 10).to(device)
    augment = TrivialAugment()
    draws = augment.draw(60, seeded()).to(device)
    expected = []
    for image, seed in zip(images, draws.tolist(), strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            expected.append(v2.TrivialAugmentWide()(image))
    result = augment.apply(images, draws)
    assert torch.equal(result, torch.stack(expected))
    assert result.dtype == torch.uint8
    assert not torch.equal(result, images)


def test_trivial_augment_takes_floating_images_as_bytes(device):
    images = random_batch(20, 8, 8).to(device)
    augment = TrivialAugment()
    draws = augment.draw(20, seeded()).to(device)
    # To the nearest one.
    for apart in (-0.4, 0.0, 0.4):
        result = augment.apply((images + apart) / 255, draws)
        assert result.dtype == torch.uint8
        assert torch.equal(result, augment.apply(images, draws))


def test_trivial_augment_cuts_off_what_lies_outside_0_to_1(device):
    images = torch.where(random_batch(20, 8, 8).to(device) < 128, -0.5, 1.5)
    augment = TrivialAugment()
    draws = augment.draw(20, seeded()).to(device)
    cut = (255 * images.clamp(0, 1)).byte()
    assert torch.equal(augment.apply(images, draws), augment.apply(cut, draws))


def test_trivial_augment_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    augment = TrivialAugment()
    augment.apply(random_batch(8, 6, 6), augment.draw(8, seeded()))
    assert torch.equal(torch.get_rng_state(), before)


# Channels and numbers


def noise(channels: int) -> ColorNoise:
    """Colour noise along the axes, with a deviation of its own for each channel."""
    axes = tuple(tuple(map(float, row)) for row in torch.eye(channels).tolist())
    return ColorNoise(ColorComponents(tuple(0.1 + i for i in range(channels)), axes, 10))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("kind", [HorizontalFlip, RandomShift, ColorNoise, TrivialAugment])
def test_changes_take_any_number_of_channels(device, kind, channels):
    augmentation = noise(channels) if kind is ColorNoise else kind()
    images = torch.randint(0, 256, (6, channels, 8, 8), generator=seeded()).byte().to(device)
    draws = augmentation.draw(6, seeded(1)).to(device)
    if kind is TrivialAugment and channels not in {1, 3}:
        with pytest.raises(ValueError, match=f"images have {channels} channels; expected 1 or 3"):
            augmentation.apply(images, draws)
        return
    result = augmentation.apply(images, draws)
    assert result.shape == images.shape
    assert not torch.equal(result, images)
    if kind in {HorizontalFlip, RandomShift}:
        for i in range(channels):
            alone = augmentation.apply(images[:, i : i + 1], draws)
            assert torch.equal(result[:, i : i + 1], alone)


def test_each_channel_has_noise_along_its_own_components():
    draws = noise(4).draw(20_000, seeded())
    assert draws.shape == (20_000, 4)
    torch.testing.assert_close(
        draws.std(0), torch.tensor([0.01, 0.11, 0.21, 0.31]), rtol=0.03, atol=0
    )


@pytest.mark.bad_input
@pytest.mark.parametrize("channels", [1, 4])
def test_noise_for_other_channels_is_refused(channels):
    augmentation = noise(3)
    text = f"images have {channels} channels and the components of ColorNoise 3; expected the same"
    with pytest.raises(ValueError, match=text):
        augmentation.apply(torch.zeros(2, channels, 4, 4), augmentation.draw(2, seeded()))


@pytest.mark.bad_input  # for the type checks; they are allowed
@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), np.int64(1)])
def test_numbers_of_numpy_are_numbers(number):
    for augmentation, name in (
        (HorizontalFlip(number), "probability"),
        (ColorNoise(COMPONENTS, number), "strength"),
    ):
        assert type(getattr(augmentation, name)) in {int, float}
        assert getattr(augmentation, name) == number
        assert augmentation.draw(3, seeded()).shape[0] == 3


# Wrong input


@pytest.mark.bad_input
@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_an_impossible_probability_is_refused(probability):
    text = f"probability is {probability}; expected a probability from 0 to 1"
    with pytest.raises(ValueError, match=re.escape(text)):
        HorizontalFlip(probability)


@pytest.mark.bad_input
@pytest.mark.parametrize("share", [0.0, -0.1, 0.6, float("nan"), "much"])
def test_an_impossible_shift_is_refused(share):
    with pytest.raises(ValueError, match=r"^share is .*; expected a number above 0, at most 0\.5$"):
        RandomShift(share)


@pytest.mark.bad_input
@pytest.mark.parametrize("strength", [-0.1, 1e308, float("inf"), float("nan")])
def test_an_impossible_strength_is_refused(strength):
    text = f"strength is {strength}; expected a number from 0 to 1000"
    with pytest.raises(ValueError, match=re.escape(text)):
        ColorNoise(COMPONENTS, strength)
