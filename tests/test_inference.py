"""The promises of `predict`: one photo has one answer, whatever it comes as."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import exif, seeded, smooth_pixels, tolerance, write_class_folders
from PIL import Image
from tiny import TINY
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from alexnet_lib import AlexNet, Preprocess, build_loaders, inference, interrupts, predict
from alexnet_lib.inference import Prediction, answers

PIXELS = smooth_pixels(40, 30)
PREPROCESS = Preprocess(14, 12, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
CLASSES = ("ant", "bee", "cat", "dog")


def tiny_model(device: torch.device | str = "cpu") -> AlexNet:
    model = AlexNet(4, architecture=TINY, initialization="torch", seed=0)
    model.classes, model.preprocess = CLASSES, PREPROCESS
    return model.to(device)


def by_class(prediction: Prediction) -> dict[str, float]:
    return dict(zip(prediction.classes, prediction.probabilities, strict=True))


def expected_shares(model: nn.Module, pixels: np.ndarray = PIXELS) -> dict[str, float]:
    with torch.no_grad():
        device = next(model.parameters()).device
        logits = model.eval()(PREPROCESS(pixels)[None].to(device))
    return dict(zip(CLASSES, logits.softmax(1)[0].tolist(), strict=True))


def near(shares: dict[str, float], device: torch.device, on_cpu: float = 1e-6) -> object:
    """What equals these shares up to rounding, which differs between sizes of a batch."""
    return pytest.approx(shares, rel=1e-6, abs=tolerance(device, on_cpu, 1e-5))


def test_probabilities_are_the_softmax_of_the_model_on_the_preprocessed_photo(device):
    (prediction,) = predict(tiny_model(device), PIXELS)
    assert by_class(prediction) == near(expected_shares(tiny_model(device)), device, 0.0)
    assert sum(prediction.probabilities) == pytest.approx(1)


def test_the_likeliest_class_comes_first(device):
    (prediction,) = predict(tiny_model(device), PIXELS)
    assert list(prediction.probabilities) == sorted(prediction.probabilities, reverse=True)
    shares = expected_shares(tiny_model(device))
    assert prediction.classes == tuple(sorted(shares, key=shares.get, reverse=True))


TENSOR = torch.from_numpy(PIXELS).movedim(-1, 0)
FORMS = {
    "PIL image": Image.fromarray(PIXELS),
    "array": PIXELS,
    "batch of arrays": PIXELS[None],
    "tensor": TENSOR,
    "batch of tensors": TENSOR[None],
    "list": [PIXELS],
    "generator": lambda: iter([PIXELS]),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_photo_has_the_same_probabilities_in_every_form(device, form):
    images = FORMS[form]
    (prediction,) = predict(tiny_model(device), images() if callable(images) else images)
    assert by_class(prediction) == near(expected_shares(tiny_model(device)), device)


FLOATING = {
    "array": lambda pixels: pixels / 255,
    "batch of arrays": lambda pixels: (pixels / 255)[None],
    "tensor": lambda pixels: torch.from_numpy(pixels / 255).movedim(-1, 0),
}


@pytest.mark.parametrize("form", FLOATING)
def test_floats_have_the_probabilities_of_the_8_bit_photo_where_it_grows(device, form):
    small = smooth_pixels(12, 10)
    (prediction,) = predict(tiny_model(device), FLOATING[form](small))
    assert by_class(prediction) == near(expected_shares(tiny_model(device), small), device)


@pytest.mark.parametrize("form", FLOATING)
def test_floats_that_shrink_keep_what_8_bits_round(device, form):
    (prediction,) = predict(tiny_model(device), FLOATING[form](PIXELS))
    shares = expected_shares(tiny_model(device), PIXELS / 255)
    assert by_class(prediction) == near(shares, device)
    rounded = PREPROCESS(PIXELS) - PREPROCESS(PIXELS / 255)
    # Rows and columns are resized one after the other, and rounded after each.
    assert 0 < rounded.abs().max() < 1 / 255 / min(PREPROCESS.std)


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_path_has_the_same_probabilities_as_its_pixels(device, kind, tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "photo.png")
    (prediction,) = predict(tiny_model(device), kind(tmp_path / "photo.png"))
    assert by_class(prediction) == near(expected_shares(tiny_model(device)), device, 0.0)


def test_a_list_may_mix_forms_and_sizes_and_keeps_its_order(device, tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "photo.png")
    other = smooth_pixels(25, 60)[::-1]
    images = [tmp_path / "photo.png", other, Image.fromarray(PIXELS), TENSOR]
    predictions = predict(tiny_model(device), images)
    assert [prediction.source for prediction in predictions] == [
        str(tmp_path / "photo.png"),
        "1",
        "2",
        "3",
    ]
    for place, pixels in enumerate([PIXELS, other, PIXELS, PIXELS]):
        shares = expected_shares(tiny_model(device), pixels)
        assert by_class(predictions[place]) == near(shares, device)


def test_more_images_than_are_shown_at_a_time_keep_their_order_and_numbers(device):
    images = [np.full((12, 12, 3), i, dtype=np.uint8) for i in range(70)]
    predictions = predict(tiny_model(device), images)
    assert [prediction.source for prediction in predictions] == [str(i) for i in range(70)]
    for place in (0, 31, 32, 69):
        shares = expected_shares(tiny_model(device), images[place])
        assert by_class(predictions[place]) == near(shares, device)


def test_a_loader_of_the_library_gives_an_answer_for_each_image(device):
    images = torch.rand(7, 3, 12, 12)
    data = TensorDataset(images, torch.arange(7) % 4)
    model = tiny_model(device)
    loaders = build_loaders((data, data), image_size=12, batch_size=3, validation_fraction=0.0)
    predictions = predict(model, loaders.test)
    model.preprocess = loaders.preprocess
    assert [prediction.source for prediction in predictions] == [str(i) for i in range(7)]
    for one, other in zip(predictions, predict(model, images), strict=True):
        assert by_class(one) == near(by_class(other), device)


@pytest.mark.parametrize("image_fit", ["crop", "squash"])
@pytest.mark.parametrize("size", [(12, 12), (10, 8), (14, 30), (150, 200)])
def test_a_photo_has_the_same_probabilities_from_a_loader_as_from_its_path(
    device, size, image_fit, tmp_path
):
    for name in CLASSES:
        (tmp_path / name).mkdir()
        for i in range(2):
            pixels = np.roll(smooth_pixels(*size), 3 * i + len(name), axis=1)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    loaders = build_loaders(
        tmp_path, image_size=12, resize=14, image_fit=image_fit, batch_size=3, test_fraction=0.25
    )
    model = tiny_model(device)
    model.preprocess = loaders.preprocess
    files = sorted(tmp_path.rglob("*.png"))
    by_path = [by_class(prediction) for prediction in predict(model, files)]
    by_loader = map(by_class, predict(model, loaders.test))
    tested = loaders.test.dataset
    assert len(tested) == 2
    for shares, label in zip(by_loader, tested.labels.tolist(), strict=True):
        assert any(shares == near(by_path[2 * label + i], device) for i in range(2))


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: TensorDataset(x, torch.zeros(len(x)))])
def test_a_loader_of_torch_with_or_without_labels_is_taken_as_preprocessed(device, wrap: Callable):
    inputs = PREPROCESS(np.stack([PIXELS, PIXELS[::-1], PIXELS[:, ::-1]]))
    predictions = predict(tiny_model(device), DataLoader(wrap(inputs), batch_size=2))
    assert len(predictions) == 3
    shares = expected_shares(tiny_model(device), PIXELS[::-1])
    assert by_class(predictions[1]) == near(shares, device)


def test_a_photo_that_exif_turns_equals_its_upright_twin(device, tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "upright.png")
    turned = Image.fromarray(np.rot90(PIXELS).copy())
    turned.save(tmp_path / "turned.png", exif=exif(6))
    one, other = predict(tiny_model(device), [tmp_path / "upright.png", tmp_path / "turned.png"])
    assert by_class(one) == by_class(other)


@pytest.mark.parametrize(("top", "named"), [(1, 1), (3, 3), (4, 4), (9, 4)])
def test_top_classes_are_named_and_at_most_all(device, top, named):
    (all_of_them,) = predict(tiny_model(device), PIXELS)
    (prediction,) = predict(tiny_model(device), PIXELS, top=top)
    assert prediction.classes == all_of_them.classes[:named]
    assert prediction.probabilities == all_of_them.probabilities[:named]


def test_every_module_gets_its_mode_back(device):
    model = tiny_model(device)
    model.classifier.eval()
    predict(model, PIXELS)
    assert model.training
    assert model.features.training
    assert not model.classifier.training


def test_dropout_does_not_act(device):
    model = tiny_model(device).train()
    assert predict(model, PIXELS) == predict(model, PIXELS)


def test_classes_and_preprocess_that_are_given_come_before_the_models_own(device):
    model = tiny_model(device)
    other = Preprocess(12, 12)
    (prediction,) = predict(model, PIXELS, preprocess=other, classes=[*"wxyz"])
    model.preprocess = other
    (expected,) = predict(model, PIXELS)
    assert prediction.probabilities == expected.probabilities
    assert prediction.classes == tuple("wxyz"[CLASSES.index(name)] for name in expected.classes)


def test_classes_without_names_are_numbered(device):
    model = tiny_model(device)
    model.classes = None
    assert set(predict(model, PIXELS)[0].classes) == {"0", "1", "2", "3"}


def test_a_model_of_another_dtype_is_used_as_it_is(device):
    (prediction,) = predict(tiny_model(device).to(torch.bfloat16), PIXELS)
    assert by_class(prediction) == pytest.approx(expected_shares(tiny_model(device)), abs=0.02)


def test_any_module_will_do():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # no parameters, three classes
    (prediction,) = predict(model, PIXELS, preprocess=PREPROCESS, classes=["r", "g", "b"])
    assert set(prediction.classes) == {"r", "g", "b"}


def test_no_images_have_no_predictions(device):
    assert predict(tiny_model(device), []) == []


def test_a_prediction_reads_as_a_line():
    line = str(Prediction("photo.png", ("cat", "dog"), (0.75, 0.25)))
    assert line == "photo.png: cat 75.0%, dog 25.0%"


# What is refused.


@pytest.mark.bad_input
@pytest.mark.parametrize("top", [0, -1, 1.5])
def test_top_below_1_is_refused(top):
    with pytest.raises(ValueError, match=f"top is {top}; expected an integer of at least 1"):
        predict(tiny_model(), PIXELS, top=top)


@pytest.mark.bad_input
def test_without_preprocess_nothing_is_guessed():
    model = tiny_model()
    model.preprocess = None
    with pytest.raises(ValueError, match="preprocess is None and the model has none"):
        predict(model, PIXELS)


@pytest.mark.bad_input
def test_a_wrong_number_of_class_names_is_refused():
    with pytest.raises(ValueError, match="classes has 2 names; expected the model's 4"):
        predict(tiny_model(), PIXELS, classes=["a", "b"])


@pytest.mark.bad_input
def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "photo.jpg").write_text("not a photo")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'photo.jpg'} cannot be read")):
        predict(tiny_model(), [PIXELS, tmp_path / "photo.jpg"])


@pytest.mark.bad_input
def test_a_file_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'none.jpg'} cannot be read")):
        predict(tiny_model(), tmp_path / "none.jpg")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (PIXELS.astype(np.float32), ValueError, "image 1 has floats from"),
        (np.zeros((4, 4, 2)), ValueError, "image 1 is an array of shape (4, 4, 2)"),
        (PIXELS[None], ValueError, "image 1 has shape (1, 3, 40, 30), a batch in a list"),
        (7, TypeError, "image 1 is a int; expected"),
        (b"bytes", TypeError, "image 1 is a bytes; expected"),
        ((PIXELS, 0), TypeError, "image 1 is a tuple; expected"),
    ],
)
def test_what_is_no_image_is_named_by_its_place(image, error, message):
    with pytest.raises(error, match=re.escape(message)):
        predict(tiny_model(), [PIXELS, image])


@pytest.mark.bad_input
def test_modes_come_back_after_an_error_too():
    model = tiny_model().train()
    with pytest.raises(ValueError, match="classes has"):
        predict(model, PIXELS, classes=["a"])
    assert all(module.training for module in model.modules())


@pytest.mark.bad_input
@pytest.mark.parametrize("images", [7, None, 2.5, nn.Linear(1, 1)])
def test_what_holds_no_images_is_refused(images):
    with pytest.raises(TypeError, match=r"^images is a [\w.]+; expected paths, PIL images"):
        predict(tiny_model(), images)


@pytest.mark.bad_input
@pytest.mark.parametrize("image", [np.array(0.5), np.zeros(4), torch.tensor(1), b"bytes"])
def test_one_thing_that_is_no_image_is_image_0(image):
    with pytest.raises((TypeError, ValueError), match=r"^image 0 is a"):
        predict(tiny_model(), [image] if getattr(image, "ndim", 0) == 1 else image)


@pytest.mark.bad_input
@pytest.mark.parametrize("preprocess", [nn.Identity(), PREPROCESS.to_dict(), lambda image: image])
def test_another_preprocessing_than_the_librarys_is_refused(preprocess):
    with pytest.raises(TypeError, match=r"expected an alexnet_lib.Preprocess: .*pass a loader"):
        predict(tiny_model(), PIXELS, preprocess=preprocess)


class WithOwnPreprocess(nn.Module):
    """A model with a method of this name."""

    def preprocess(self, image):
        return image

    def forward(self, images):
        return images.mean((2, 3))


@pytest.mark.bad_input
def test_a_method_of_a_model_is_not_taken_for_its_preprocessing():
    with pytest.raises(ValueError, match="preprocess is None and the model has none"):
        predict(WithOwnPreprocess(), PIXELS)


@pytest.mark.bad_input
@pytest.mark.parametrize("model", [AlexNet, None, "alexnet", lambda images: images])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(TypeError, match=r"^model is a \w+; expected a torch.nn.Module"):
        predict(model, PIXELS)


class Says(nn.Module):
    """A model with this output for each batch."""

    def __init__(self, output: Callable):
        super().__init__()
        self.output = output

    def forward(self, images):
        return self.output(images)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: x.mean((1, 2, 3))[:, None], "logits of shape (1, 1), whose softmax has no"),
        (lambda x: x.mean((1, 2, 3)), "logits of shape (1,), whose softmax has no meaning"),
        (lambda x: x, "logits of shape (1, 3, 12, 12), whose softmax has no meaning"),
        (lambda x: {"logits": x}, "model returns a dict; expected a tensor of logits"),
        (lambda x: x.mean(), "model returns a tensor of shape () for 1 images"),
    ],
)
def test_a_model_that_does_not_give_logits_of_classes_is_refused(output, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        predict(Says(output), PIXELS, preprocess=PREPROCESS)


@pytest.mark.bad_input
def test_class_names_of_a_replaced_layer_are_named():
    model = tiny_model()
    model.classes = ("ant", "bee")
    with pytest.raises(ValueError, match=r"^model.classes has 2 names; expected the model's 4"):
        predict(model, PIXELS)


# Grey images and other numbers of channels


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy, Image.fromarray])
def test_a_grey_image_is_repeated_for_a_network_of_colours(device, convert):
    grey = np.ascontiguousarray(PIXELS[..., 0])
    shares = expected_shares(tiny_model(device), np.stack([grey] * 3, axis=-1))
    for images in (convert(grey), [convert(grey)]):
        (prediction,) = predict(tiny_model(device), images)
        assert by_class(prediction) == near(shares, device)


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy, Image.fromarray])
def test_a_network_of_grey_images_takes_grey_and_colours(convert, tmp_path):
    model = AlexNet(4, architecture=TINY, in_channels=1, initialization="torch", seed=0)
    model.classes, model.preprocess = CLASSES, Preprocess(14, 12, mean=(0.5,), std=(0.2,))
    grey = np.array(Image.fromarray(PIXELS).convert("L"))
    Image.fromarray(PIXELS).save(tmp_path / "colour.png")
    images = [convert(grey), PIXELS, Image.fromarray(PIXELS), tmp_path / "colour.png", TENSOR]
    first, *others = predict(model, images)
    for prediction in others:
        assert by_class(prediction) == pytest.approx(by_class(first), abs=1e-6)


def test_images_of_five_channels_are_taken_by_a_network_of_five():
    model = AlexNet(4, architecture=TINY, in_channels=5, seed=0)
    model.preprocess = Preprocess(14, 12, mean=(0.5,) * 5, std=(0.2,) * 5)
    cube = np.zeros((20, 30, 5), dtype=np.uint8)
    assert len(predict(model, cube)) == 1
    with pytest.raises(ValueError, match="image 1"):
        predict(model, [cube, PIXELS])


# Files that cannot be read


def write_photos(folder: Path, *names: str) -> list[Path]:
    files = [folder / name for name in names]
    for file in files:
        if file.stem.startswith("bad"):
            file.write_text("not a photo")
        elif not file.stem.startswith("none"):
            Image.fromarray(PIXELS).save(file)
    return files


@pytest.mark.parametrize("batch", [1, 2, 32])
def test_a_file_that_cannot_be_read_can_be_left_out(device, batch, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "_BATCH", batch)
    names = ("0.png", "bad.jpg", "1.png", "none.jpg", "2.png", "bad2.jpg", "bad3.jpg")
    files = [*write_photos(tmp_path, *names), PIXELS]
    with pytest.warns(UserWarning, match="cannot be read as an image") as warned:
        predictions = predict(tiny_model(device), files, on_bad_image="skip")
    good = [str(file) for file in files[:-1] if file.stem in "012"]
    assert [prediction.source for prediction in predictions] == [*good, "7"]
    for prediction in predictions:
        assert by_class(prediction) == near(expected_shares(tiny_model(device)), device)
    texts = [str(warning.message) for warning in warned]
    left_out = [file for file in files[:-1] if file.stem not in "012"]
    for file, text in zip(left_out, texts, strict=True):
        assert text.startswith(f"{file} cannot be read as an image: ")
        assert text.endswith("; it is left out")


@pytest.mark.parametrize("path", ["bad.jpg", "none.jpg", "~nobody-of-this-name/x.png", "a\0b.png"])
def test_any_path_that_gives_no_image_can_be_left_out(device, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path, "bad.jpg", "good.png")
    named = re.escape(path.replace("\0", r"\x00"))
    with pytest.warns(UserWarning, match=named):
        (prediction,) = predict(tiny_model(device), [path, "good.png"], on_bad_image="skip")
    assert prediction.source == "good.png"
    with pytest.warns(UserWarning, match=named):
        assert predict(tiny_model(device), path, on_bad_image="skip") == []


@pytest.mark.bad_input
def test_what_is_no_file_is_not_left_out():
    for image in (PIXELS.astype(np.float32), 7):
        with pytest.raises((TypeError, ValueError), match="image 0"):
            predict(tiny_model(), [image], on_bad_image="skip")
    with pytest.raises(ValueError, match="on_bad_image is 'ignore'; expected one of"):
        predict(tiny_model(), PIXELS, on_bad_image="ignore")


def test_a_folder_stands_for_its_images_also_below_it(device, tmp_path):
    photos = write_class_folders(tmp_path / "photos", ("b", "a"))
    write_photos(photos, "0.png")
    (photos / "Thumbs.db").write_text("litter")
    predictions = predict(tiny_model(device), [PIXELS, photos])
    names = ["0.png", "a/0.png", "a/1.png", "b/0.png", "b/1.png"]
    expected = ["0", *(str(photos / name) for name in names)]
    assert [prediction.source for prediction in predictions] == expected
    assert predictions[1:] == predict(tiny_model(device), str(photos))


def test_what_else_lies_in_a_folder_is_named(device, tmp_path):
    write_photos(tmp_path, "0.png")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.warns(UserWarning, match=r"notes\.txt is ignored"):
        assert len(predict(tiny_model(device), tmp_path)) == 1


@pytest.mark.bad_input
def test_a_folder_without_images_is_named(tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path} cannot be read as an image: it")):
        predict(tiny_model(), tmp_path)


def test_a_path_may_begin_at_the_home_folder(device, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_photos(tmp_path, "photo.png")
    predictions = predict(tiny_model(device), ["~/photo.png", Path("~/photo.png")])
    assert [prediction.source for prediction in predictions] == ["~/photo.png"] * 2


# Work while it comes


def test_images_are_asked_for_while_answers_are_given(device, monkeypatch):
    monkeypatch.setattr(inference, "_BATCH", 2)
    asked = 0

    def photos() -> Iterator[np.ndarray]:
        nonlocal asked
        while True:
            asked += 1
            yield PIXELS

    stream = answers(tiny_model(device), photos())
    assert next(stream).source == "0"
    assert asked <= 4
    stream.close()


def test_files_are_read_in_threads_ahead_of_the_network(device, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "_BATCH", 2)
    files = write_photos(tmp_path, *(f"{i}.png" for i in range(6)))
    readers, read = set(), Preprocess.read
    ahead = threading.Event()

    def noted(preprocess: Preprocess, file: Path) -> Tensor:
        readers.add(threading.current_thread())
        if file == files[3]:
            ahead.set()
        return read(preprocess, file)

    monkeypatch.setattr(Preprocess, "read", noted)
    stream = answers(tiny_model(device), files)
    assert next(stream).source == str(files[0])
    assert ahead.wait(10)
    assert threading.main_thread() not in readers
    assert [answer.source for answer in stream] == [*map(str, files[1:])]
    assert not any(thread.is_alive() for thread in readers)


def test_a_stream_that_is_closed_gives_the_model_its_modes_back(device):
    model = tiny_model(device).train()
    stream = answers(model, [PIXELS] * 70)
    next(stream)
    assert not model.training
    stream.close()
    assert model.training
    while any("predict" in thread.name for thread in threading.enumerate()):
        time.sleep(0.01)  # they end with the images that they are reading


# Loaders and models of others


INPUTS = torch.rand(3, 3, 12, 12, generator=seeded())


class Stream(IterableDataset):
    def __iter__(self):
        return iter(INPUTS)


class Collated:
    """A loader that yields its batches in another form."""

    dataset = None

    def __init__(self, form: Callable):
        self.form = form

    def __iter__(self):
        return map(self.form, (INPUTS[:2], INPUTS[2:], INPUTS[:0]))


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Stream(), batch_size=2),
        DataLoader(TensorDataset(INPUTS.double(), torch.zeros(3)), batch_size=2),
        DataLoader([{"image": x, "label": 0} for x in INPUTS], batch_size=2),
        DataLoader([{"pixel_values": x} for x in INPUTS], batch_size=2),
        Collated(lambda x: [x]),
        Collated(lambda x: (x, torch.zeros(len(x)))),
        Collated(lambda x: x.numpy()),
        Collated(lambda x: (x.numpy().astype(np.float64), [0] * len(x))),
    ],
)
def test_a_loader_of_any_kind_has_an_answer_for_each_image(device, loader):
    predictions = predict(tiny_model(device), loader)
    assert [prediction.source for prediction in predictions] == ["0", "1", "2"]
    shares = tiny_model(device).eval()(INPUTS).softmax(1).tolist()
    for prediction, expected in zip(predictions, shares, strict=True):
        expected = dict(zip(CLASSES, expected, strict=True))
        assert by_class(prediction) == near(expected, device)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "form", [lambda x: x.byte(), lambda x: x[0], lambda x: (x.long(), 0), lambda x: [["a", "b"]]]
)
def test_a_loader_that_yields_no_treated_images_is_refused(form):
    with pytest.raises(ValueError, match=r"loader (yields images of shape|are a list)"):
        predict(tiny_model(), Collated(form))


@pytest.mark.bad_input
def test_a_data_set_is_not_taken_for_a_loader():
    data: Dataset = Subset(TensorDataset(INPUTS, torch.zeros(3)), [0, 1])
    with pytest.raises(TypeError, match=r"^image 0 is a tuple; expected"):
        predict(tiny_model(), data)


def test_a_wrapped_model_has_the_classes_and_the_preprocessing_of_its_own(device):
    wrapped = nn.DataParallel(tiny_model(device))
    (prediction,) = predict(wrapped, PIXELS)
    assert by_class(prediction) == near(expected_shares(tiny_model(device)), device, 0.0)


def test_a_model_of_torchvision_has_numbers_for_classes():
    from torchvision.models import alexnet

    model = alexnet(num_classes=7).train()
    (prediction,) = predict(model, PIXELS, preprocess=Preprocess(64, 64), top=2)
    assert len(prediction.classes) == 2
    assert set(prediction.classes) <= set("0123456")
    assert model.training


@pytest.mark.bad_input  # by its annotation
@pytest.mark.parametrize("top", [np.int64(2), np.uint8(2), torch.tensor(2)])
def test_top_may_be_an_integer_of_any_library(top):
    assert predict(tiny_model(), PIXELS, top=top) == predict(tiny_model(), PIXELS, top=2)


@pytest.mark.bad_input  # by its annotation
def test_names_may_be_an_array():
    names = np.array(list("wxyz"))
    (prediction,) = predict(tiny_model(), PIXELS, classes=names)
    assert sorted(prediction.classes) == list("wxyz")
    assert all(type(name) is str for name in prediction.classes)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_with_integer_buffers_first_keeps_its_dtype(device, dtype):
    model = tiny_model(device).to(dtype)
    wrapped = nn.Sequential(model)
    wrapped.register_buffer("steps", torch.zeros((), dtype=torch.int64))
    (prediction,) = predict(wrapped, PIXELS, preprocess=PREPROCESS, classes=CLASSES)
    assert by_class(prediction) == pytest.approx(expected_shares(tiny_model(device)), abs=0.02)


# Outputs that are not finite, memory, signals


def test_weights_that_are_nan_are_named_with_the_first_image(device, tmp_path):
    model = tiny_model(device)
    nn.init.constant_(model.features.conv1.weight, float("nan"))
    file = write_class_folders(tmp_path, ("ant",), count=1) / "ant" / "0.png"
    message = "are NaN or infinite: the weight features.conv1.weight is NaN or infinite"
    with pytest.raises(FloatingPointError, match=re.escape(f"for image {file} {message}")):
        predict(model, [file, PIXELS])


def test_the_image_without_finite_outputs_is_named_after_the_answers_of_those_before(device):
    batch = torch.zeros(4, 3, 12, 12)
    batch[2, 0, 0, 0] = float("inf")
    stream = answers(tiny_model(device), DataLoader(TensorDataset(batch), 4))
    assert [next(stream).source for _ in range(2)] == ["0", "1"]
    with pytest.raises(FloatingPointError, match=r"for image 2 .* expected images without NaN"):
        next(stream)


def test_a_model_in_float16_that_overflows_is_told_the_other_precisions():
    model = Says(lambda images: torch.full((len(images), 2), float("inf")))
    model.scale = nn.Parameter(torch.ones((), dtype=torch.float16))
    with pytest.raises(FloatingPointError, match=r"65504 .* expected precision 'bfloat16' or"):
        predict(model, PIXELS, preprocess=PREPROCESS)


def test_where_memory_does_not_suffice_the_batch_is_said():
    model = Says(lambda images: torch.empty(2**50))
    message = "for prediction of 1 images of 12x12 pixels: predict smaller images or"
    with pytest.raises(MemoryError, match=message):
        predict(model, PIXELS, preprocess=PREPROCESS)


def test_a_signal_ends_a_prediction_between_two_batches(device, monkeypatch):
    seen = []

    def check():
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(interrupts, "check", check)
    model = tiny_model(device)
    with pytest.raises(KeyboardInterrupt):
        predict(model, [PIXELS] * 40)
    assert model.training


@pytest.mark.bad_input
def test_a_model_without_numbers_is_refused():
    with pytest.raises(ValueError, match=r"^model is on the device 'meta', which holds no numbers"):
        predict(tiny_model().to("meta"), PIXELS)


@pytest.mark.bad_input
@pytest.mark.parametrize("classes", ["wxyz", 4, {"a": 1}, [], iter("wxyz"), range(10**9)])
def test_names_that_are_no_sequence_are_refused(classes):
    with pytest.raises(ValueError, match=r"^classes is .*; expected a sequence of names"):
        predict(tiny_model(), PIXELS, classes=classes)
