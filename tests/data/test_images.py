"""The promises of images as tensors, and of the sets of them: the pixels that Pillow shows."""

import re

import numpy as np
import pytest
import torch
from helpers import Items, random_pixels, write_class_folders
from PIL import Image

from alexnet_lib.data.images import ImageTensors, WrappedDataset, image_to_tensor
from alexnet_lib.data.preprocess import Preprocess
from alexnet_lib.data.sources import image_folder, wrap_dataset

bad_input = pytest.mark.bad_input
ORDER = torch.tensor([3, 0, 3])


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
        (np.zeros((3, 8, 8), np.uint8), "image is an array of shape (3, 8, 8); expected (H, W, C)"),
        (np.zeros(8, np.uint8), "image is an array of shape (8,); expected (H, W, C)"),
        (np.array([["a"]]), "image has dtype <U1; expected uint8"),
        (np.zeros((8, 8, 4), np.uint8), "image is an array of shape (8, 8, 4)"),
        (np.zeros((0, 8, 3), np.uint8), "image is an array of shape (0, 8, 3)"),
        (torch.zeros(8, 8, 3), "image is a tensor of shape (8, 8, 3); expected (C, H, W)"),
        (torch.zeros(1, 1, 3, 8, 8), "image is a tensor of shape (1, 1, 3, 8, 8)"),
        (np.zeros((8, 8, 3), np.int64), "image has dtype torch.int64; expected uint8"),
        (np.zeros((8, 8, 3), bool), "image has dtype torch.bool; expected uint8"),
        (np.full((8, 8, 3), 255.0), "image has floats from 255 to 255; expected 0 to 1"),
        (torch.full((3, 8, 8), -0.1), "image has floats from -0.1 to -0.1; expected 0 to 1"),
        (torch.full((3, 8, 8), float("nan")), "image has floats from nan to nan"),
    ],
)
def test_a_wrong_image_is_refused_and_named(image, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        Preprocess()(image)


@pytest.mark.bad_input
def test_a_path_is_no_image():
    with pytest.raises(TypeError, match="photo is a str; expected a PIL image, an array or a ten"):
        image_to_tensor("cat.jpg", "photo")


# Channels


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_a_grey_image_may_have_two_axes(kind):
    grey = random_pixels(6, 8)[..., 0]
    assert np.array_equal(image_to_tensor(kind(grey)).numpy(), grey[None])
    assert np.array_equal(image_to_tensor(kind(grey), channels=3).numpy(), np.stack([grey] * 3))


@pytest.mark.parametrize("floating", [False, True])
def test_colour_becomes_the_luma_that_pillow_computes(floating):
    pixels = random_pixels(20, 30)
    expected = np.asarray(Image.fromarray(pixels).convert("L"))
    grey = image_to_tensor(pixels / 255 if floating else pixels, channels=1)[0].numpy()
    assert np.allclose(grey * 255, expected, atol=0.51) if floating else (grey == expected).all()


def test_any_number_of_channels_can_be_asked_for():
    assert image_to_tensor(np.zeros((6, 8, 5), np.uint8), channels=5).shape == (5, 6, 8)
    assert image_to_tensor(torch.zeros(2, 5, 6, 8), channels=5).shape == (2, 5, 6, 8)
    with pytest.raises(ValueError, match=r"with C = 5"):
        image_to_tensor(torch.zeros(3, 6, 8), channels=5)


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16_bits_keep_their_levels(kind, order):
    values = np.array([[0, 1, 4095, 65535]], dtype=order)
    values = values if kind is np.array else values.astype(np.uint16)
    result = image_to_tensor(kind(values))
    assert result.dtype == torch.float32
    assert (result * 65535).round().tolist() == [[[0, 1, 4095, 65535]]]
