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

from alexnet_lib.transforms import HorizontalFlip, Preprocess, image_to_tensor

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


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
    preprocess = Preprocess(256, 227, "squash", 255.0, (1.5, 2.5, 3.5), (0.1, 0.2, 0.3))
    written = json.dumps(preprocess.to_dict())
    assert Preprocess.from_dict(json.loads(written)) == preprocess


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


def test_flips_follow_the_generator():
    flip = HorizontalFlip()
    draws = [flip.draw(100, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_flips_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    HorizontalFlip().draw(100, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_a_certain_flip_is_certain(probability):
    draws = HorizontalFlip(probability).draw(10_000, torch.Generator().manual_seed(0))
    assert (draws == bool(probability)).all()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"image_size": 0}, "image_size is 0; expected an integer of at least 1"),
        ({"image_size": 22.5}, "image_size is 22.5; expected an integer of at least 1"),
        ({"resize": 200}, "resize is 200; expected an integer of at least 227"),
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
