"""The promises of images as tensors, and of the sets of them: the pixels that Pillow shows."""

import io
import re

import numpy as np
import pytest
import torch
from helpers import Items, exif, random_pixels, smooth_pixels, write_class_folders
from PIL import Image

from alexnet_lib.data.images import ImageTensors, WrappedDataset, image_to_tensor, read_image
from alexnet_lib.data.preprocess import Preprocess
from alexnet_lib.data.sources import image_folder, wrap_dataset

bad_input = pytest.mark.bad_input
ORDER = torch.tensor([3, 0, 3])


def reopened(image: Image.Image, kind: str = "png", **options) -> Image.Image:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(file)


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


# Image files


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_a_file_of_another_mode_is_read_as_rgb(tmp_path, mode):
    image = Image.fromarray(random_pixels(6, 8)).convert(mode)
    image.save(tmp_path / "image.png")
    expected = np.array(image.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(read_image(tmp_path / "image.png").numpy(), expected)


def test_a_file_is_turned_as_its_exif_says(tmp_path):
    stored = smooth_pixels(16, 24)
    Image.fromarray(stored).save(tmp_path / "image.jpg", exif=exif(6), quality=100, subsampling=0)
    image = read_image(tmp_path / "image.jpg").numpy().transpose(1, 2, 0)
    assert image.shape == (24, 16, 3)
    assert np.abs(image - np.rot90(stored, -1).astype(int)).max() < 8  # JPEG's own error


@bad_input
def test_a_missing_file_and_a_broken_header_are_named(tmp_path):
    missing, broken = tmp_path / "missing.png", tmp_path / "broken.ppm"
    broken.write_bytes(b"P6 8 x 255\n")
    for file in (missing, broken):
        with pytest.raises(ValueError, match=re.escape(f"{file} cannot be read as an image: ")):
            read_image(file)


# ImageTensors, ImageFiles, WrappedDataset


def image_tensors() -> ImageTensors:
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    return ImageTensors(images, torch.tensor([0, 1, 1, 0]), ("cat", "dog"))


def test_a_subset_of_tensors_has_the_images_asked_for_in_their_order():
    whole = image_tensors()
    part = whole.subset(ORDER)
    assert torch.equal(part.images, whole.images[ORDER])
    assert part.labels.tolist() == [0, 0, 0]
    assert part.classes == whole.classes


def test_a_subset_of_tensors_is_a_copy():
    whole = image_tensors()
    before = whole.images.clone()
    whole.subset(torch.arange(4)).images.zero_()
    assert torch.equal(whole.images, before)


def test_a_subset_of_files_has_the_files_asked_for_in_their_order(tmp_path):
    write_class_folders(tmp_path, size=(100, 8))
    whole, _, _ = image_folder(tmp_path)
    part = whole.subset(ORDER)
    assert part.files == tuple(tmp_path / name for name in ("dog/1.png", "cat/0.png", "dog/1.png"))
    assert part.labels.tolist() == [1, 0, 1]
    assert part.classes == ("cat", "dog")


def test_a_subset_of_a_subset_of_another_data_set_reads_the_right_images():
    images = [torch.full((3, 8, 8), value, dtype=torch.uint8) for value in range(5)]
    whole = wrap_dataset(Items([(image, value) for value, image in enumerate(images)]))
    part = whole.subset(torch.tensor([4, 2, 0])).subset(torch.tensor([1, 0]))
    assert isinstance(part, WrappedDataset)
    assert [(int(image[0, 0, 0]), label) for image, label in map(part.__getitem__, range(2))] == [
        (2, 2),
        (4, 4),
    ]


@bad_input
@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_without_a_class_is_refused(label):
    text = f"labels run from {min(label, 0)} to {max(label, 0)}; expected 0 to 1, the numbers of"
    with pytest.raises(ValueError, match=text):
        ImageTensors(torch.zeros(2, 3, 8, 8), torch.tensor([0, label]), ("cat", "dog"))


@bad_input
def test_a_wrong_image_of_a_data_set_is_named_by_its_place():
    image = torch.zeros(3, 8, 8)
    wrapped = wrap_dataset(Items([(image, 0), (255 + image, 0)]))
    with pytest.raises(ValueError, match="image 1 of the data set has floats from 255 to 255"):
        wrapped.subset(torch.tensor([1]))[0]


# Wrong input


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
