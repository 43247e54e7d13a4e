"""The promises of the fixed treatment: torchvision's numbers, a batch at a time."""

import json
import re
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import first_channels, of_dtype, random_batch, random_pixels, seeded, smooth_pixels
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from alexnet_lib.data import preprocess as preprocess_module
from alexnet_lib.data.decoding import ImageError, read_image
from alexnet_lib.data.images import to_unit
from alexnet_lib.data.preprocess import Preprocess

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)

seeds = st.integers(0, 2**32 - 1)


def as_tutorial(image: np.ndarray) -> torch.Tensor:
    """What the tutorial does to an image, through torchvision."""
    steps = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    steps += [v2.Resize((227, 227)), v2.Normalize(MEAN, STD)]
    return v2.Compose(steps)(Image.fromarray(image)).as_subclass(torch.Tensor)


def as_torchvision(image: np.ndarray) -> torch.Tensor:
    """The same, resized before it becomes floating, as torchvision recommends."""
    steps = [v2.ToImage(), v2.Resize((227, 227))]
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    return v2.Compose(steps)(Image.fromarray(image)).as_subclass(torch.Tensor)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (100, 200), (227, 227)])
def test_a_batch_equals_the_tutorials_images_one_by_one(device, height, width):
    images = np.stack([random_pixels(height, width, seed) for seed in range(3)])
    preprocess = Preprocess(image_fit="squash", mean=MEAN, std=STD)
    expected = torch.stack([as_tutorial(image) for image in images])
    for form in (images, first_channels(images).to(device)):
        torch.testing.assert_close(preprocess(form).cpu(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(300, 400), (100, 400), (228, 227)])
def test_images_that_become_smaller_are_torchvisions_but_for_the_rounding(
    device, implementation, height, width
):
    images = np.stack([random_pixels(height, width, seed) for seed in range(3)])
    preprocess = Preprocess(image_fit="squash", mean=MEAN, std=STD)
    expected = torch.stack([as_torchvision(image) for image in images])
    # torchvision rounds each direction, the compiled loop both together.
    result = preprocess(first_channels(images).to(device)).cpu()
    levels = (result - expected).abs() * torch.tensor(STD)[:, None, None] * 255
    assert levels.max() <= 1.01
    assert levels.mean() < 0.25


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    image_fit=st.sampled_from(["crop", "squash"]),
)
def test_one_image_equals_its_place_in_a_batch(height, width, image_fit):
    images = np.stack([random_pixels(height, width, seed) for seed in range(3)])
    preprocess = Preprocess(20, 16, image_fit, mean=MEAN, std=STD)
    batch = preprocess(images)
    assert batch.shape == (3, 3, 16, 16)
    torch.testing.assert_close(preprocess(images[1]), batch[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(200, 300), (300, 200)])
def test_crop_is_torchvisions_shorter_side_and_centre_crop(height, width):
    # The longer side becomes 150 and the margins 25 exactly, so that no rounding differs.
    image = first_channels(random_pixels(height, width))
    expected = v2.Compose([v2.Resize(100), v2.CenterCrop(100)])(image) / 255
    torch.testing.assert_close(Preprocess(100, 100)(image), expected, rtol=0, atol=1.01 / 255)


@pytest.mark.parametrize(("height", "width"), [(50, 75), (75, 50), (100, 150)])
def test_crop_of_an_image_that_becomes_no_smaller_is_torchvisions_of_floats(height, width):
    image = first_channels(random_pixels(height, width))
    expected = v2.Compose([v2.Resize(100), v2.CenterCrop(100)])(image / 255)
    torch.testing.assert_close(Preprocess(100, 100)(image), expected, rtol=0, atol=1e-5)


@given(height=st.integers(40, 120), width=st.integers(40, 120))
def test_crop_differs_from_torchvisions_by_rounding_alone(height, width):
    # torchvision cuts the longer side's fraction off where this rounds it, and rounds the
    # margin where this cuts it: at most one pixel of this image's smooth slopes.
    image = first_channels(smooth_pixels(height, width)) / 255
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


def test_a_preprocess_survives_json():
    preprocess = Preprocess(256, 227, "squash", 255.0, (1.5, 2.5, 3.5), (0.1, 0.2, 0.3), edge=3)
    written = json.dumps(preprocess.to_dict())
    assert Preprocess.from_dict(json.loads(written)) == preprocess


@pytest.mark.bad_input  # for the type checks; they are allowed
@pytest.mark.parametrize("kind", [list, np.array, np.float32, torch.tensor])
def test_numbers_of_other_libraries_are_stored_as_plain_ones(kind):
    numbers = kind([0.25, 0.5])
    preprocess = Preprocess(
        resize=np.int64(20), image_size=np.int32(16), scale=np.float32(2), mean=numbers, std=numbers
    )
    assert json.loads(json.dumps(preprocess.to_dict())) == {
        **Preprocess(20, 16).to_dict(),
        "scale": 2.0,
        "mean": [0.25, 0.5],
        "std": [0.25, 0.5],
    }
    assert {type(value) for value in (*preprocess.mean, *preprocess.std)} == {float}
    assert {type(value) for value in (preprocess.resize, preprocess.image_size)} == {int}
    assert preprocess == Preprocess(20, 16, "crop", 2.0, (0.25, 0.5), (0.25, 0.5))
    assert hash(preprocess)


@pytest.mark.bad_input  # for the type checks; they are allowed
def test_whole_numbers_are_numbers():
    assert Preprocess(8, 8, mean=(0, 0, 0), std=(1, 1, 1)) == Preprocess(8, 8)


def test_dictionaries_of_earlier_versions_are_read():
    old = Preprocess(20, 16).to_dict()
    del old["background"], old["decode"]
    assert Preprocess.from_dict(old) == Preprocess(20, 16)


# Channels


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("height", "width"), [(30, 20), (20, 20), (40, 50), (12, 17), (9, 9)])
def test_each_channel_is_treated_as_if_it_were_alone(
    device, implementation, channels, dtype, height, width
):
    shape = (2, channels, height, width)
    images = of_dtype(torch.randint(0, 256, shape, generator=seeded()).byte().to(device), dtype)
    mean, std = (tuple(start + 0.1 * i for i in range(channels)) for start in (0.0, 0.2))
    preprocess = Preprocess(20, 18, "crop", 2.0, mean, std, edge=2)
    assert preprocess.channels == channels
    corners = torch.tensor([[0, 4], [3, 1]], device=device)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        result = preprocess.network_input(images, torch.float32, memory_format, corners)
        assert result.shape == (2, channels, 18, 18)
        assert result.is_contiguous(memory_format=memory_format)
        for i in range(channels):
            alone = Preprocess(20, 18, "crop", 2.0, mean[i : i + 1], std[i : i + 1], edge=2)
            expected = alone.network_input(images[:, i : i + 1], corners=corners)
            torch.testing.assert_close(result[:, i : i + 1], expected, rtol=0, atol=1e-5)


def test_float16_is_the_rounded_float32(device, implementation):
    preprocess = Preprocess(20, 16, mean=MEAN, std=STD)
    for side in (9, 40):
        images = random_batch(2, side, side).to(device)
        result = preprocess.network_input(images, torch.float16)
        assert result.dtype == torch.float16
        torch.testing.assert_close(result.float(), preprocess(images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_converted_to_the_channels_and_background(channels):
    preprocess = Preprocess(8, 8, mean=(0.0,) * channels, std=(1.0,) * channels, background="red")
    grey = random_pixels(8, 8)[..., 0]
    expected = torch.from_numpy(grey).expand(channels, 8, 8) / 255
    for image in (grey, grey[..., None], torch.from_numpy(grey), Image.fromarray(grey)):
        torch.testing.assert_close(preprocess(image), expected)
    assert preprocess(random_pixels(8, 8)).shape == (channels, 8, 8)
    transparent = preprocess(Image.new("RGBA", (8, 8), (0, 0, 0, 0)))[:, 0, 0]
    expected = torch.tensor([1.0, 0, 0]) if channels == 3 else torch.tensor([76 / 255])
    torch.testing.assert_close(transparent, expected)


# Work in proportion to what is kept

LONG = [(1, 3000), (3000, 1), (1, 1), (2, 100_000), (100_000, 2), (40, 9000), (9000, 40), (1, 65)]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("height", "width"), LONG)
@pytest.mark.parametrize("count", [1, 3])
def test_long_images_take_no_time_and_memory_for_what_the_crop_leaves_out(
    implementation, height, width, dtype, count, monkeypatch
):
    monkeypatch.setattr(preprocess_module.F, "interpolate", bounded(F.interpolate))
    images = of_dtype(random_batch(count, height, width), dtype)
    preprocess = Preprocess(32, 27, mean=MEAN, std=STD)
    started = time.process_time()
    result = preprocess.network_input(images)
    resized = preprocess.resized(images)
    assert time.process_time() - started < 2
    assert result.shape == (count, 3, 27, 27)
    assert resized.shape == (count, 3, 32, 32)
    torch.testing.assert_close(
        result, preprocess.normalized(to_unit(resized))[..., 2:29, 2:29], rtol=0, atol=2e-4
    )


def bounded(interpolate):
    """The function, for no more than four times what is kept."""

    def resized(images, size, **arguments):
        assert size[0] * size[1] <= 4 * 32**2
        return interpolate(images, size, **arguments)

    return resized


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    stretch=st.sampled_from([1, 5, 20]),
    resize=st.integers(1, 24),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
    seed=seeds,
)
def test_what_is_kept_of_a_long_image_is_that_of_the_whole_resized_image(
    device, implementation, height, width, stretch, resize, dtype, seed
):
    shape = (height * stretch, width) if seed % 2 else (height, width * stretch)
    pixels = random_pixels(*shape, seed)
    images = of_dtype(first_channels(pixels).to(device), dtype)
    result = Preprocess(resize, resize).resized(images).cpu()
    size = [max(resize, round(side * resize / min(shape))) for side in shape]
    top, left = ((side - resize) // 2 for side in size)
    whole = resized_in_float64(pixels, *size)
    expected = whole[:, top : top + resize, left : left + resize]
    if result.dtype == torch.uint8:
        assert abs(np.float64(result) - expected).max() <= 1.01
    else:
        assert dtype == torch.float32 or size[0] >= shape[0]
        assert abs(np.float64(result) * 255 - expected).max() <= 0.01


def test_a_long_image_gets_a_gradient(implementation):
    for shape in ((3, 200), (60, 900)):
        image = torch.rand(1, 3, *shape, requires_grad=True)
        result = Preprocess(32, 27).network_input(image)
        result.sum().backward()
        assert image.grad is not None
        # The weights of an output pixel add up to 1.
        assert image.grad.sum().item() == pytest.approx(3 * 27**2, rel=1e-4)


# Files


@pytest.mark.parametrize(("decode", "decoded"), [("reduced", (200, 150)), ("full", (400, 300))])
def test_a_file_is_decoded_as_small_as_its_resize_allows(tmp_path, monkeypatch, decode, decoded):
    file = tmp_path / "photo.jpg"
    Image.fromarray(smooth_pixels(300, 400)).save(file, quality=95)
    shapes = []
    shrunk = Preprocess.shrunk
    monkeypatch.setattr(
        Preprocess, "shrunk", lambda self, image: shapes.append(image.shape) or shrunk(self, image)
    )
    preprocess = Preprocess(100, 90, decode=decode)
    result = preprocess.read(file)
    assert shapes == [(3, decoded[1], decoded[0])]
    assert result.dtype == torch.uint8
    assert result.shape == (3, 100, 100)
    exact = Preprocess(100, 90).resized(read_image(file))
    assert (result.int() - exact.int()).abs().max() <= (0 if decode == "full" else 3)


@pytest.mark.parametrize("image_fit", ["crop", "squash"])
def test_a_file_that_the_resize_enlarges_is_left_as_it_is(tmp_path, image_fit):
    pixels = random_pixels(30, 20)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    result = Preprocess(40, 40, image_fit).read(tmp_path / "a.png")
    assert torch.equal(result, first_channels(pixels))


def test_a_file_has_the_channels_and_the_background(tmp_path):
    Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save(tmp_path / "a.png")
    preprocess = Preprocess(8, 8, mean=(0.0,), std=(1.0,), background="#808080")
    assert preprocess.read(tmp_path / "a.png").unique().tolist() == [128]
    assert preprocess.read(tmp_path / "a.png").shape == (1, 8, 8)


def test_a_16_bit_file_keeps_its_levels(tmp_path):
    levels = np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16
    Image.fromarray(levels).save(tmp_path / "a.png")
    preprocess = Preprocess(64, 64, mean=(0.0,), std=(1.0,))
    result = preprocess.network_input(preprocess.read(tmp_path / "a.png"))
    torch.testing.assert_close(
        result[0] * 65535, torch.from_numpy(levels).float(), rtol=0, atol=0.1
    )


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"a.jpg cannot be read as an image: unknown format"):
        Preprocess().read(tmp_path / "a.jpg")


@pytest.mark.bad_input
def test_files_have_one_or_three_channels(tmp_path):
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="channels is 4; expected 1 or 3 for image files"):
        Preprocess(mean=(0.0,) * 4, std=(1.0,) * 4).read(tmp_path / "a.png")


# 8-bit images


def triangles(side: int, resized: int) -> np.ndarray:
    """The weights (resized, side) of an antialiased bilinear resize of one side, in float64."""
    scale = side / resized
    centers = (np.arange(resized) + 0.5) * scale
    apart = abs(np.arange(side) + 0.5 - centers[:, None])
    weights = np.maximum(0, 1 - apart / max(scale, 1))
    return weights / weights.sum(1, keepdims=True)


def resized_in_float64(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """An image (h, w, 3) of bytes as (3, height, width), from 0 to 255 and not rounded."""
    rows, columns = triangles(pixels.shape[0], height), triangles(pixels.shape[1], width)
    return rows @ np.float64(pixels).transpose(2, 0, 1) @ columns.T


@given(
    height=st.integers(2, 150),
    width=st.integers(2, 150),
    resize=st.integers(1, 100),
    smooth=st.booleans(),
    seed=seeds,
)
def test_the_rounding_to_bytes_is_at_most_one_level_off_a_float64_resize(
    height, width, resize, smooth, seed
):
    assume(max(height, width) > resize)
    pixels = smooth_pixels(height, width) if smooth else random_pixels(height, width, seed)
    result = Preprocess(resize, resize, "squash").resized(first_channels(pixels))
    assert result.dtype == torch.uint8
    # Each of the two directions is rounded by itself, with weights of 16 bits.
    levels = np.float64(result) - resized_in_float64(pixels, resize, resize).round()
    assert abs(levels).max() <= 1


def test_the_rounding_to_bytes_makes_images_neither_darker_nor_brighter():
    levels = []
    for seed in range(20):
        pixels = random_pixels(150, 130, seed)
        result = Preprocess(100, 100, "squash").resized(first_channels(pixels))
        levels.append(np.float64(result) - resized_in_float64(pixels, 100, 100))
    # 600,000 values; cutting off would make each of the two directions darker by half a level.
    assert abs(np.mean(levels)) < 0.01
    assert np.std(levels) < 0.45


def test_an_image_of_one_pixel_is_the_middle_of_the_resized_one(implementation):
    # torch's own resize gives all rows of one pixel the first one's value.
    for shape in ((20, 2), (2, 20), (8, 2), (40, 30)):
        pixels = random_pixels(*shape)
        size = [max(1, round(side / min(shape))) for side in shape]
        whole = resized_in_float64(pixels, *size)
        expected = whole[:, (size[0] - 1) // 2, (size[1] - 1) // 2]
        result = Preprocess(1, 1).resized(first_channels(pixels))[:, 0, 0]
        assert abs(np.float64(result) - expected).max() <= 1.01


@given(height=st.integers(1, 60), width=st.integers(1, 60), larger=st.integers(0, 40), seed=seeds)
def test_an_image_that_becomes_larger_is_not_rounded(device, height, width, larger, seed):
    resize = max(height, width) + larger
    pixels = random_pixels(height, width, seed)
    result = Preprocess(resize, resize, "squash")(first_channels(pixels).to(device))
    expected = resized_in_float64(pixels, resize, resize) / 255
    np.testing.assert_allclose(result.cpu().numpy(), expected, rtol=0, atol=2e-5)


def test_floating_images_are_not_rounded():
    pixels = random_pixels(90, 70)
    result = Preprocess(50, 50, "squash")(pixels / 255)
    expected = resized_in_float64(pixels, 50, 50) / 255
    np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("image_fit", ["crop", "squash"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("height", "width"), [(40, 40), (90, 60), (60, 60), (30, 30)])
def test_bytes_stay_bytes_unless_an_image_is_enlarged(height, width, dtype, image_fit):
    images = of_dtype(random_batch(2, height, width), dtype)
    result = Preprocess(40, 32, image_fit).resized(images)
    assert result.shape == (2, 3, 40, 40)
    assert result.dtype == (torch.float32 if (height, width) == (30, 30) else dtype)


@pytest.mark.parametrize(("height", "width"), [(40, 55), (70, 40)])
def test_an_image_that_is_only_cropped_keeps_its_bytes(height, width):
    image = random_batch(1, height, width)[0]
    result = Preprocess(40, 32, "crop").resized(image)
    top, left = (height - 40) // 2, (width - 40) // 2
    assert torch.equal(result, image[:, top : top + 40, left : left + 40])


@pytest.mark.parametrize("image_fit", ["crop", "squash"])
@pytest.mark.parametrize(
    ("height", "width"), [(30, 30), (40, 40), (30, 40), (30, 60), (40, 60), (60, 60), (90, 60)]
)
def test_an_image_is_shrunk_unless_that_would_enlarge_it(height, width, image_fit):
    image = random_batch(1, height, width)[0]
    preprocess = Preprocess(40, 32, image_fit, mean=MEAN, std=STD)
    shrunk = preprocess.shrunk(image)
    kept = min(height, width) < 40 if image_fit == "crop" else max(height, width) <= 40
    assert shrunk.dtype == torch.uint8
    assert shrunk.shape == (image.shape if kept else (3, 40, 40))
    torch.testing.assert_close(preprocess(shrunk), preprocess(image), rtol=0, atol=1e-6)


# Crops, edges and views


def whole_images(preprocess: Preprocess, images: torch.Tensor) -> torch.Tensor:
    """Resized and normalised, and not cropped."""
    return preprocess.normalized(to_unit(preprocess.resized(images)))


@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    crop=st.integers(1, 12),
    margin=st.integers(0, 9),
    edge=st.integers(0, 3),
    image_fit=st.sampled_from(["crop", "squash"]),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    seed=seeds,
)
def test_a_crop_is_the_part_of_the_whole_image_at_its_corner(
    device, implementation, shape, crop, margin, edge, image_fit, dtype, memory_format, seed
):
    preprocess = Preprocess(crop + margin, crop + edge, image_fit, 1.0, MEAN, STD, edge)
    images = of_dtype(random_batch(3, *shape, seed).to(device), dtype)
    corners = torch.randint(0, margin + 1, (3, 2), generator=seeded(seed)).to(device)
    result = preprocess.network_input(images, memory_format=memory_format, corners=corners)
    assert result.shape == (3, 3, crop + edge, crop + edge)
    assert result.is_contiguous(memory_format=memory_format)
    whole = whole_images(preprocess, images)
    assert not result[..., crop:, :].any()
    assert not result[..., crop:].any()
    for image, (top, left), cropped in zip(whole, corners.tolist(), result, strict=True):
        expected = image[:, top : top + crop, left : left + crop]
        torch.testing.assert_close(cropped[:, :crop, :crop], expected, rtol=0, atol=2e-5)


@given(crop=st.integers(1, 12), margin=st.integers(0, 9), side=st.integers(1, 12))
def test_without_corners_the_crop_is_the_centre(device, implementation, crop, margin, side):
    preprocess = Preprocess(crop + margin, crop, "crop", 1.0, MEAN, STD)
    images = random_batch(2, side, side).to(device)
    middle = torch.full((2, 2), margin // 2, device=device)
    torch.testing.assert_close(
        preprocess.network_input(images), preprocess.network_input(images, corners=middle)
    )


def test_corners_are_no_part_of_the_images_memory(implementation):
    corners = torch.tensor([[0, 4], [2, 1]])
    before = corners.clone()
    Preprocess(12, 8).network_input(random_batch(2, 6, 6), corners=corners)
    assert torch.equal(corners, before)


def test_the_released_codes_224_pixels_are_227_with_three_zeros_at_the_right_and_the_bottom(device):
    image = random_batch(1, 256, 256).to(device)
    preprocess = Preprocess(256, 227, mean=MEAN, std=STD, edge=3)
    result = preprocess(image)
    assert preprocess.crop_size == 224
    assert result.shape == (1, 3, 227, 227)
    assert torch.equal(result[..., :224, :224], Preprocess(256, 224, mean=MEAN, std=STD)(image))
    assert not result[..., 224:, :].any()
    assert not result[..., :, 224:].any()


def test_one_image_has_an_edge_too():
    image = random_batch(1, 6, 6)
    preprocess = Preprocess(9, 8, mean=MEAN, std=STD, edge=2)
    torch.testing.assert_close(preprocess(image[0]), preprocess(image)[0])


def test_an_edge_lets_an_image_be_smaller_than_the_input():
    result = Preprocess(6, 8, mean=MEAN, std=STD, edge=2)(random_batch(1, 6, 6))
    assert result.shape == (1, 3, 8, 8)


@given(number=st.sampled_from([1, 2, 10]), margin=st.integers(1, 5), edge=st.integers(0, 3))
def test_there_are_as_many_views_as_asked_for_each_a_batch_of_inputs(number, margin, edge):
    preprocess = Preprocess(6 + margin, 6 + edge, edge=edge)
    images = torch.randn(2, 3, 6 + margin, 6 + margin, generator=seeded())
    views = list(preprocess.views(images, number))
    assert [view.shape for view in views] == [(2, 3, 6 + edge, 6 + edge)] * number


@given(number=st.sampled_from([1, 2]), crop=st.integers(1, 9), margin=st.integers(0, 5))
def test_the_first_of_one_or_two_views_is_what_the_network_gets_otherwise(number, crop, margin):
    preprocess = Preprocess(crop + margin, crop + 1, "crop", 1.0, MEAN, STD, edge=1)
    images = random_batch(2, 7, 7)
    first = next(preprocess.views(whole_images(preprocess, images), number))
    torch.testing.assert_close(first, preprocess(images), rtol=0, atol=2e-5)


def test_the_second_view_is_the_first_ones_picture_mirrored(device):
    images = torch.randn(2, 3, 9, 9, generator=seeded()).to(device)
    first, second = Preprocess(9, 8, edge=2).views(images, 2)
    assert torch.equal(second[..., :6, :6], first[..., :6, :6].flip(-1))


@pytest.mark.parametrize("number", [2, 10])
def test_an_edge_stays_at_the_right_and_the_bottom_of_mirrored_views(number):
    images = torch.rand(2, 3, 9, 9, generator=seeded()) + 1
    for view in Preprocess(9, 8, edge=2).views(images, number):
        assert (view[..., :6, :6] >= 1).all()
        assert not view[..., 6:, :].any()
        assert not view[..., :, 6:].any()


@given(crop=st.integers(1, 8), margin=st.integers(1, 5))
def test_ten_views_are_the_four_corners_and_the_centre_each_with_its_mirror_image(
    device, crop, margin
):
    images = torch.randn(2, 3, crop + margin, crop + margin, generator=seeded()).to(device)
    views = list(Preprocess(crop + margin, crop).views(images, 10))
    start, end, middle = slice(crop), slice(margin, None), slice(margin // 2, margin // 2 + crop)
    corners = [(start, start), (start, end), (end, start), (end, end), (middle, middle)]
    expected = [images[..., rows, columns] for rows, columns in corners]
    for upright, mirrored, picture in zip(views[::2], views[1::2], expected, strict=True):
        assert torch.equal(upright, picture)
        assert torch.equal(mirrored, picture.flip(-1))


# Wrong input


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"image_size": 0}, "image_size is 0; expected an integer from 1 to 16384"),
        ({"image_size": 22.5}, "image_size is 22.5; expected an integer from 1 to 16384"),
        ({"resize": 200}, "resize is 200; expected at least 227, what the network sees"),
        ({"resize": 223, "edge": 3}, "resize is 223; expected at least 224, what the network sees"),
        ({"resize": 256.0}, "resize is 256.0; expected an integer from 1 to 16384"),
        ({"edge": -1}, "edge is -1; expected an integer from 0 to 16384"),
        ({"edge": 0.5}, "edge is 0.5; expected an integer from 0 to 16384"),
        ({"edge": 227}, "edge is 227; expected less than image_size, 227"),
        ({"image_fit": "stretch"}, "image_fit is 'stretch'; expected one of 'crop', 'squash'"),
        ({"scale": 0.0}, "scale is 0.0; expected a number from 1e-6 to 1e6"),
        ({"scale": float("inf")}, "scale is inf; expected a number from 1e-6 to 1e6"),
        ({"mean": 0.5}, "mean is 0.5; expected finite numbers, one for each channel"),
        ({"mean": ()}, "mean is (); expected finite numbers, one for each channel"),
        ({"mean": None}, "mean is None; expected finite numbers, one for each channel"),
        ({"mean": "abc"}, "mean is 'abc'; expected finite numbers, one for each channel"),
        ({"mean": ("a", "b", "c")}, "mean is ('a', 'b', 'c'); expected finite numbers"),
        ({"mean": (True, 0.5, 0.5)}, "mean is (True, 0.5, 0.5); expected finite numbers"),
        ({"mean": np.zeros((3, 1))}, "expected finite numbers, one for each channel"),
        ({"mean": (0.5, 0.5)}, "mean is (0.5, 0.5) and std is (1.0, 1.0, 1.0); expected one"),
        ({"std": (1.0, 1.0, float("nan"))}, "std is (1.0, 1.0, nan); expected finite numbers"),
        ({"std": (1.0, 0.0, 1.0)}, "std is (1.0, 0.0, 1.0); expected numbers above 0"),
        ({"scale": "1"}, "scale is '1'; expected a number from 1e-6 to 1e6"),
        ({"scale": None}, "scale is None; expected a number from 1e-6 to 1e6"),
        ({"decode": "fast"}, "decode is 'fast'; expected one of 'reduced', 'full'"),
        ({"background": "no colour"}, "background is 'no colour'; expected a colour such as"),
        ({"background": "#ff000080"}, "background is '#ff000080', which is transparent; expected"),
        ({"background": None}, "background is None; expected a colour such as 'white'"),
        ({"background": (255, 0, 0)}, "background is (255, 0, 0); expected a colour such as"),
    ],
)
def test_a_field_out_of_range_is_named(fields, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        Preprocess(**fields)


@pytest.mark.bad_input
@pytest.mark.parametrize("change", [{"std": None}, {"colour": "red"}, {"mean": ["a", "b", "c"]}])
def test_other_data_is_no_preprocess(change):
    with pytest.raises(ValueError, match="data is not a Preprocess"):
        Preprocess.from_dict({**Preprocess().to_dict(), **change})


@pytest.mark.bad_input
@pytest.mark.parametrize("number", [0, 3, 5, -1])
def test_another_number_of_views_is_refused(number):
    with pytest.raises(ValueError, match=f"views is {number}; expected one of 1, 2, 10"):
        list(Preprocess(9, 6).views(torch.zeros(1, 3, 9, 9), number))


@pytest.mark.bad_input
@pytest.mark.parametrize("preprocess", [Preprocess(9, 9), Preprocess(9, 11, edge=2)])
def test_ten_views_of_images_that_leave_no_margin_are_refused(preprocess):
    text = "views is 10, but resize is 9, the size of the crop"
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


def test_an_image_that_needs_a_gradient_gets_one_with_compiled_kernels_too(implementation):
    image = torch.rand(1, 3, 8, 8, requires_grad=True)
    Preprocess(16, 12, scale=2.0)(image).sum().backward()
    # A resize to twice the side gives each pixel the weight of four, less at the crop.
    assert image.grad is not None
    assert image.grad.max().item() == pytest.approx(2.0 * 4)


@pytest.mark.parametrize(
    ("preprocess", "size", "resize"),
    [
        (Preprocess(259, 227), 131, 149),
        (Preprocess(227, 227), 131, 131),
        (Preprocess(256, 227, edge=3), 131, 146),
        (Preprocess(30, 20), 40, 60),
        (Preprocess(10**4, 10**4 - 1), 1, 1),
    ],
)
def test_at_another_size_the_input_shows_the_same_part_of_an_image(preprocess, size, resize):
    other = preprocess.at_image_size(size)
    assert other == replace(preprocess, image_size=size, resize=resize)


@given(size=st.integers(1, 2000), more=st.integers(0, 500), edge=st.integers(0, 5))
def test_at_its_own_size_a_preprocess_is_itself(size, more, edge):
    preprocess = Preprocess(size + more, size + edge, edge=edge)
    assert preprocess.at_image_size(size + edge) == preprocess


@pytest.mark.bad_input
@pytest.mark.parametrize("size", [3, 0, 2.5, None, 10**9])
def test_another_size_that_is_impossible_is_refused(size):
    with pytest.raises(ValueError, match=r"^image_size is "):
        Preprocess(256, 227, edge=3).at_image_size(size)
