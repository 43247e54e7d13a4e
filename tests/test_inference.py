"""The promises of `predict`: one photo has one answer, whatever it comes as."""

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import exif, smooth_pixels
from PIL import Image
from tiny import TINY
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from alexnet_lib import AlexNet, Preprocess, build_loaders, predict
from alexnet_lib.inference import Prediction

PIXELS = smooth_pixels(40, 30)
PREPROCESS = Preprocess(14, 12, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
CLASSES = ("ant", "bee", "cat", "dog")


def tiny_model() -> AlexNet:
    model = AlexNet(4, architecture=TINY, initialization="torch", seed=0)
    model.classes, model.preprocess = CLASSES, PREPROCESS
    return model


def by_class(prediction: Prediction) -> dict[str, float]:
    return dict(zip(prediction.classes, prediction.probabilities, strict=True))


def expected_shares(model: nn.Module, pixels: np.ndarray = PIXELS) -> dict[str, float]:
    with torch.no_grad():
        logits = model.eval()(PREPROCESS(pixels)[None])
    return dict(zip(CLASSES, logits.softmax(1)[0].tolist(), strict=True))


def test_probabilities_are_the_softmax_of_the_model_on_the_preprocessed_photo():
    (prediction,) = predict(tiny_model(), PIXELS)
    assert by_class(prediction) == pytest.approx(expected_shares(tiny_model()))
    assert sum(prediction.probabilities) == pytest.approx(1)


def test_the_likeliest_class_comes_first():
    (prediction,) = predict(tiny_model(), PIXELS)
    assert list(prediction.probabilities) == sorted(prediction.probabilities, reverse=True)
    shares = expected_shares(tiny_model())
    assert prediction.classes == tuple(sorted(shares, key=shares.get, reverse=True))


TENSOR = torch.from_numpy(PIXELS).movedim(-1, 0)
FORMS = {
    "PIL image": Image.fromarray(PIXELS),
    "array": PIXELS,
    "batch of arrays": PIXELS[None],
    "tensor": TENSOR,
    "batch of tensors": TENSOR[None],
    "list": [PIXELS],
    "generator": (image for image in [PIXELS]),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_photo_has_the_same_probabilities_in_every_form(form):
    (prediction,) = predict(tiny_model(), FORMS[form])
    assert by_class(prediction) == pytest.approx(expected_shares(tiny_model()), abs=1e-6)


FLOATING = {
    "array": lambda pixels: pixels / 255,
    "batch of arrays": lambda pixels: (pixels / 255)[None],
    "tensor": lambda pixels: torch.from_numpy(pixels / 255).movedim(-1, 0),
}


@pytest.mark.parametrize("form", FLOATING)
def test_floats_have_the_probabilities_of_the_8_bit_photo_where_it_grows(form):
    small = smooth_pixels(12, 10)
    (prediction,) = predict(tiny_model(), FLOATING[form](small))
    assert by_class(prediction) == pytest.approx(expected_shares(tiny_model(), small), abs=1e-6)


@pytest.mark.parametrize("form", FLOATING)
def test_floats_that_shrink_keep_what_8_bits_round(form):
    (prediction,) = predict(tiny_model(), FLOATING[form](PIXELS))
    shares = expected_shares(tiny_model(), PIXELS / 255)
    assert by_class(prediction) == pytest.approx(shares, abs=1e-6)
    rounded = PREPROCESS(PIXELS) - PREPROCESS(PIXELS / 255)
    # Rows and columns are resized one after the other, and rounded after each.
    assert 0 < rounded.abs().max() < 1 / 255 / min(PREPROCESS.std)


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_path_has_the_same_probabilities_as_its_pixels(kind, tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "photo.png")
    (prediction,) = predict(tiny_model(), kind(tmp_path / "photo.png"))
    assert by_class(prediction) == pytest.approx(expected_shares(tiny_model()))


def test_a_list_may_mix_forms_and_sizes_and_keeps_its_order(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "photo.png")
    other = smooth_pixels(25, 60)[::-1]
    images = [tmp_path / "photo.png", other, Image.fromarray(PIXELS), TENSOR]
    predictions = predict(tiny_model(), images)
    assert [prediction.source for prediction in predictions] == [
        str(tmp_path / "photo.png"),
        "1",
        "2",
        "3",
    ]
    for place, pixels in enumerate([PIXELS, other, PIXELS, PIXELS]):
        shares = expected_shares(tiny_model(), pixels)
        assert by_class(predictions[place]) == pytest.approx(shares, abs=1e-6)


def test_more_images_than_are_shown_at_a_time_keep_their_order_and_numbers():
    images = [np.full((12, 12, 3), i, dtype=np.uint8) for i in range(70)]
    predictions = predict(tiny_model(), images)
    assert [prediction.source for prediction in predictions] == [str(i) for i in range(70)]
    for place in (0, 31, 32, 69):
        shares = expected_shares(tiny_model(), images[place])
        assert by_class(predictions[place]) == pytest.approx(shares, abs=1e-6)


def test_a_loader_of_the_library_gives_an_answer_for_each_image():
    images = torch.rand(7, 3, 12, 12)
    data = TensorDataset(images, torch.arange(7) % 4)
    model = tiny_model()
    loaders = build_loaders((data, data), image_size=12, batch_size=3, validation_fraction=0.0)
    predictions = predict(model, loaders.test)
    model.preprocess = loaders.preprocess
    assert [prediction.source for prediction in predictions] == [str(i) for i in range(7)]
    for one, other in zip(predictions, predict(model, images), strict=True):
        assert by_class(one) == pytest.approx(by_class(other), abs=1e-6)


@pytest.mark.parametrize("image_fit", ["crop", "squash"])
@pytest.mark.parametrize("size", [(12, 12), (10, 8), (14, 30), (150, 200)])
def test_a_photo_has_the_same_probabilities_from_a_loader_as_from_its_path(
    size, image_fit, tmp_path
):
    for name in CLASSES:
        (tmp_path / name).mkdir()
        for i in range(2):
            pixels = np.roll(smooth_pixels(*size), 3 * i + len(name), axis=1)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    loaders = build_loaders(
        tmp_path, image_size=12, resize=14, image_fit=image_fit, batch_size=3, test_fraction=0.25
    )
    model = tiny_model()
    model.preprocess = loaders.preprocess
    files = sorted(tmp_path.rglob("*.png"))
    by_path = [by_class(prediction) for prediction in predict(model, files)]
    by_loader = map(by_class, predict(model, loaders.test))
    tested = loaders.test.dataset
    assert len(tested) == 2
    for shares, label in zip(by_loader, tested.labels.tolist(), strict=True):
        assert any(shares == pytest.approx(by_path[2 * label + i], abs=1e-6) for i in range(2))


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: TensorDataset(x, torch.zeros(len(x)))])
def test_a_loader_of_torch_with_or_without_labels_is_taken_as_preprocessed(wrap: Callable):
    inputs = PREPROCESS(np.stack([PIXELS, PIXELS[::-1], PIXELS[:, ::-1]]))
    predictions = predict(tiny_model(), DataLoader(wrap(inputs), batch_size=2))
    assert len(predictions) == 3
    shares = expected_shares(tiny_model(), PIXELS[::-1])
    assert by_class(predictions[1]) == pytest.approx(shares, abs=1e-6)


def test_a_photo_that_exif_turns_equals_its_upright_twin(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "upright.png")
    turned = Image.fromarray(np.rot90(PIXELS).copy())
    turned.save(tmp_path / "turned.png", exif=exif(6))
    one, other = predict(tiny_model(), [tmp_path / "upright.png", tmp_path / "turned.png"])
    assert by_class(one) == by_class(other)


@pytest.mark.parametrize(("top", "named"), [(1, 1), (3, 3), (4, 4), (9, 4)])
def test_top_classes_are_named_and_at_most_all(top, named):
    (all_of_them,) = predict(tiny_model(), PIXELS)
    (prediction,) = predict(tiny_model(), PIXELS, top=top)
    assert prediction.classes == all_of_them.classes[:named]
    assert prediction.probabilities == all_of_them.probabilities[:named]


def test_every_module_gets_its_mode_back():
    model = tiny_model()
    model.classifier.eval()
    predict(model, PIXELS)
    assert model.training
    assert model.features.training
    assert not model.classifier.training


def test_dropout_does_not_act():
    model = tiny_model().train()
    assert predict(model, PIXELS) == predict(model, PIXELS)


def test_classes_and_preprocess_that_are_given_come_before_the_models_own():
    model = tiny_model()
    other = Preprocess(12, 12)
    (prediction,) = predict(model, PIXELS, preprocess=other, classes="wxyz")
    model.preprocess = other
    (expected,) = predict(model, PIXELS)
    assert prediction.probabilities == expected.probabilities
    assert prediction.classes == tuple("wxyz"[CLASSES.index(name)] for name in expected.classes)


def test_classes_without_names_are_numbered():
    model = tiny_model()
    model.classes = None
    assert set(predict(model, PIXELS)[0].classes) == {"0", "1", "2", "3"}


def test_a_model_of_another_dtype_is_used_as_it_is():
    (prediction,) = predict(tiny_model().to(torch.bfloat16), PIXELS)
    assert by_class(prediction) == pytest.approx(expected_shares(tiny_model()), abs=0.02)


def test_any_module_will_do():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # no parameters, three classes
    (prediction,) = predict(model, PIXELS, preprocess=PREPROCESS, classes=["r", "g", "b"])
    assert set(prediction.classes) == {"r", "g", "b"}


def test_no_images_have_no_predictions():
    assert predict(tiny_model(), []) == []


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
        (np.zeros((4, 4)), ValueError, "image 1 is an array of shape (4, 4)"),
        (PIXELS[None], ValueError, "image 1 has shape (1, 3, 40, 30), a batch in a list"),
        (7, TypeError, "image 1 is a int; expected"),
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
