"""The promises of the command line: what it prints, its exit codes, one line for a mistake."""

import json
import platform
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import FakeCifar10, random_pixels, write_class_folders
from PIL import Image
from safetensors.torch import save_file
from tiny import TINY, TINY_OVERRIDES, use_tiny

import alexnet_lib
from alexnet_lib import (
    AlexNet,
    Preprocess,
    RunOptions,
    cli,
    compute_channel_stats,
    devices,
    diagnose,
    evaluate,
    load_checkpoint,
    predict,
    prepare_loaders,
    save_checkpoint,
    stored_recipe,
    summary,
)
from alexnet_lib.data import cifar10 as cifar10_module
from alexnet_lib.data import shapes as shapes_module
from alexnet_lib.data.shapes import SHAPES_CLASSES
from alexnet_lib.kernels import cpu
from alexnet_lib.training import recipes

TINY_RUN = ("--architecture", "tiny", "--batch-size", "16", "--epochs", "1", "--device", "cpu")
COMMANDS = (
    "train",
    "doctor",
    "demo",
    "evaluate",
    "predict",
    "stats",
    "summary",
    "info",
    "download cifar10",
)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch, tmp_path):
    use_tiny(monkeypatch)
    monkeypatch.setattr(recipes, "DEMO_OVERRIDES", {**TINY_OVERRIDES, "epochs": 1})
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def kept_memory(monkeypatch) -> list[str]:
    """The calls of what would change this process for good."""
    calls: list[str] = []
    monkeypatch.setattr(alexnet_lib, "keep_freed_memory", lambda: calls.append("kept"))
    return calls


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command line in this process: exit status, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["alexnet-lib", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    return call


def write_checkpoint(folder: Path, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    file = folder / "model.safetensors"
    model = AlexNet(len(classes), architecture=TINY, seed=0)
    save_checkpoint(file, model, classes=classes, preprocess=Preprocess(12, 12))
    return file


def write_photo(file: Path) -> Path:
    Image.fromarray(random_pixels(20, 30)).save(file)
    return file


# What the commands do.


def test_train_writes_a_run_and_says_how_it_went(call, tmp_path):
    run = tmp_path / "run"
    code, out, err = call("train", "shapes", *TINY_RUN, "--out", run, "--seed", 3)
    assert code == 0
    accuracy = json.loads((run / "result.json").read_text())["test"]["accuracy"]
    assert out == (
        "trained on shapes: 54 images, 1 epochs\n"
        f"test accuracy {accuracy:.1%} on 20 images\n"
        f"results in {run}\n"
    )
    assert "epoch 1/1: training loss" in err
    stored = json.loads((run / "recipe.json").read_text())
    assert (stored["seed"], stored["data"], stored["recipe"]["epochs"]) == (3, "shapes", 1)


def test_the_options_of_train_are_those_of_the_recipe(call, tmp_path):
    options = {"train_images": 40, "image_size": 20, "learning_rate": 0.5, "batch_size": 8}
    given = [part for name, value in options.items() for part in (f"--{name}", value)]
    given = [str(part).replace("_", "-") for part in given]
    assert call("train", "shapes", *TINY_RUN, *given, "--out", tmp_path / "run")[0] == 0
    stored = json.loads((tmp_path / "run" / "recipe.json").read_text())["recipe"]
    assert options.items() <= stored.items()


SETTINGS = (
    ("learning_rate", "0.05", 0.05),
    ("train_images", "40", 40),
    ("weight_decay", "1e-3", 0.001),
    ("nesterov", "false", False),
    ("random_crop", "True", True),
    ("max_grad_norm", "none", None),
    ("ema_decay", "None", None),
    ("schedule", "constant", "constant"),
    ("preprocessing", "subtract_mean", "subtract_mean"),
    ("stats", "per_image", "per_image"),
    ("optimizer", "'adamw'", "adamw"),
    ("freeze", "conv1,relu1", ["conv1", "relu1"]),
)


def test_set_takes_numbers_truth_values_none_words_and_lists(call, tmp_path):
    given = [part for field, value, _ in SETTINGS for part in ("--set", f"{field}={value}")]
    assert call("train", "shapes", *TINY_RUN, "--out", tmp_path / "run", *given)[0] == 0
    stored = json.loads((tmp_path / "run" / "recipe.json").read_text())["recipe"]
    for field, _, expected in SETTINGS:
        assert stored[field] == expected, field
        assert type(stored[field]) is type(expected), field


@pytest.mark.parametrize("value", ["", "conv1"])
def test_set_takes_any_number_of_layers_to_freeze(value, call, tmp_path):
    run = tmp_path / "run"
    assert call("train", "shapes", *TINY_RUN, "--out", run, "--set", f"freeze={value}")[0] == 0
    stored = json.loads((run / "recipe.json").read_text())["recipe"]
    assert stored["freeze"] == [value] * bool(value)


def test_the_recipe_is_taken_by_its_name(call, tmp_path):
    arguments = ("train", "shapes", *TINY_RUN, "--out", tmp_path / "run", "--recipe", "tutorial")
    assert call(*arguments)[0] == 0
    stored = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert (stored["recipe"]["name"], stored["seed"]) == ("tutorial", 0)


@pytest.mark.parametrize("place", ["run", "run/recipe.json"])
def test_a_runs_recipe_and_seed_are_taken_from_its_folder_or_its_file(place, call, tmp_path):
    settings = ("--set", "freeze=conv1", "--set", "mixup=0.2", "--seed", 5)
    call("train", "shapes", *TINY_RUN, *settings, "--out", tmp_path / "run")
    again = ("--recipe", tmp_path / place, "--device", "cpu", "--out", tmp_path / "again")
    assert call("train", "shapes", *again)[0] == 0
    first, second = (
        json.loads((tmp_path / name / "recipe.json").read_text()) for name in ("run", "again")
    )
    assert first == second
    assert first["seed"] == 5
    assert losses(tmp_path / "run") == losses(tmp_path / "again")


def test_a_folder_does_not_hide_the_recipe_of_its_name(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call("train", "shapes", *TINY_RUN, "--seed", 5, "--out", "tutorial")
    for name, out in (("tutorial", "named"), ("./tutorial", "again")):
        call("train", "shapes", *TINY_RUN, "--recipe", name, "--out", out)
    stored = [json.loads(Path(out, "recipe.json").read_text()) for out in ("named", "again")]
    assert [(run["recipe"]["name"], run["seed"]) for run in stored] == [
        ("tutorial", 0),
        ("modern", 5),
    ]


def losses(run: Path) -> list[float]:
    lines = (run / "history.jsonl").read_text().splitlines()
    return [json.loads(line)["train"]["loss"] for line in lines]


def test_a_stored_recipe_can_be_changed_and_given_another_seed(call, tmp_path):
    call("train", "shapes", *TINY_RUN, "--seed", 5, "--out", tmp_path / "run")
    changes = ("--seed", 0, "--set", "dropout=0.25", "--epochs", 2, "--device", "cpu")
    call("train", "shapes", "--recipe", tmp_path / "run", *changes, "--out", tmp_path / "again")
    first, second = (
        json.loads((tmp_path / name / "recipe.json").read_text()) for name in ("run", "again")
    )
    assert second["seed"] == 0
    assert second["recipe"] == {**first["recipe"], "dropout": 0.25, "epochs": 2}


TINY_DOCTOR = ("--set", "architecture=tiny", "--set", "batch_size=16", "--device", "cpu")


def test_doctor_prints_a_row_for_each_layer_and_what_looks_wrong(call, tmp_path):
    options = ("--set", "learning_rate=1e-9", "--steps", 3)
    code, out, _ = call("doctor", "shapes", *TINY_DOCTOR, *options)
    assert code == 0
    overrides = {"architecture": "tiny", "batch_size": 16, "learning_rate": 1e-9}
    diagnosis = diagnose("shapes", overrides=overrides, steps=3, options=RunOptions(device="cpu"))
    assert out == f"{diagnosis}\n"
    assert [line.split()[0] for line in out.splitlines()[3:5]] == ["conv1", "fc2"]
    assert "one batch, 3 steps: loss " in out
    assert re.search(r"^- the weights hardly change: .*\(1e-09\)$", out, re.MULTILINE)
    assert not list(tmp_path.iterdir())


def test_doctor_takes_the_recipe_and_the_seed_of_a_run(call, tmp_path):
    call("train", "shapes", *TINY_RUN, "--seed", 5, "--out", tmp_path / "run")
    options = ("--recipe", tmp_path / "run", "--device", "cpu", "--steps", 2)
    stored = call("doctor", "shapes", *options)
    assert stored[0] == 0
    assert call("doctor", "shapes", *options, "--seed", 5) == stored
    assert call("doctor", "shapes", *options, "--seed", 0) != stored


def test_train_without_out_writes_to_runs(call, tmp_path):
    assert call("train", "shapes", *TINY_RUN)[0] == 0
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 1


def test_a_second_demo_replaces_the_first(call, tmp_path):
    for _ in range(2):
        code, out, _ = call("demo", "--device", "cpu")
        assert code == 0
        assert "built-in synthetic shapes" in out
    history = (tmp_path / "runs" / "demo" / "history.jsonl").read_text()
    assert len(history.splitlines()) == 1


COLORS = ("blue", "green", "red")


def write_color_checkpoint(folder: Path) -> Path:
    """A network that names the colour of an image; a pure one has the logits 4, 0 and 0."""
    model = AlexNet(3, architecture=TINY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        kernels, classifier = model.features.conv1.weight, model.classifier.fc2.weight
        for label, channel in enumerate((2, 1, 0)):
            kernels[label, channel, 1, 1] = 1.0
            classifier.view(3, 4, -1)[label, label] = 1.0
    file = folder / "colors.safetensors"
    save_checkpoint(file, model, classes=COLORS, preprocess=Preprocess(12, 12))
    return file


def write_colors(folder: Path, name: str, colors: tuple[str, ...]) -> None:
    (folder / name).mkdir(parents=True)
    for i, color in enumerate(colors):
        Image.new("RGB", (12, 12), {"green": "lime"}.get(color, color)).save(
            folder / name / f"{i}.png"
        )


def test_evaluate_gives_accuracies_and_for_each_class_its_commonest_mistake(call, tmp_path):
    for name in COLORS:
        write_colors(tmp_path / "photos" / "train", name, (name,))
    test = tmp_path / "photos" / "test"
    write_colors(test, "blue", ("blue", "blue"))
    write_colors(test, "green", ("green", "red", "red", "red", "blue"))
    write_colors(test, "red", ("red", "red", "red", "blue"))
    options = ("--device", "cpu", "--precision", "float32")
    code, out, err = call(
        "evaluate", write_color_checkpoint(tmp_path), tmp_path / "photos", *options
    )
    assert code == 0
    # A right answer costs ln(1 + 2 / e^4) = 0.0360, a wrong one 4 more; 5 of 11 are wrong.
    assert out == (
        "loss 1.8542, accuracy 54.5% (11 images)\n"
        "blue   100.0%\n"
        "green   20.0%  most often confused with red (3)\n"
        "red     75.0%  most often confused with blue (1)\n"
    )
    assert not err


def test_evaluate_takes_the_folder_of_a_run(call, tmp_path):
    call("train", "shapes", *TINY_RUN, "--out", tmp_path / "run")
    code, out, _ = call("evaluate", tmp_path / "run", "shapes", "--device", "cpu")
    assert code == 0
    assert "(20 images)" in out
    assert all(name in out for name in SHAPES_CLASSES)


def test_evaluate_takes_several_views(call, tmp_path):
    run = tmp_path / "run"
    call("train", "shapes", *TINY_RUN, "--set", "resize_ratio=1.5", "--out", run)
    options = RunOptions(device="cpu", precision="float32")
    loader = prepare_loaders("shapes", stored_recipe(run)[0], options=options).test
    printed = set()
    for views in (1, 2, 10):
        code, out, _ = call("evaluate", run, "shapes", "--views", views, "--device", "cpu")
        assert code == 0
        model = load_checkpoint(run / "best.safetensors")
        expected = evaluate(model, loader, views=views, precision="auto", progress=False)
        assert out.splitlines()[0] == str(expected)
        printed.add(out)
    assert len(printed) == 3


def test_evaluate_says_where_there_is_no_test_part(call, tmp_path):
    checkpoint = write_checkpoint(tmp_path)
    write_class_folders(tmp_path / "photos")
    code, out, err = call("evaluate", checkpoint, tmp_path / "photos", "--device", "cpu")
    assert code == 0
    assert "(4 images)" in out
    assert "has no test part: evaluating on all its images" in err


def test_predict_gives_a_line_for_each_photo(call, tmp_path):
    checkpoint = write_checkpoint(tmp_path)
    photos = [write_photo(tmp_path / name) for name in ("b.png", "a.jpg")]
    code, out, _ = call("predict", *photos, "--checkpoint", checkpoint, "--top", 1)
    assert code == 0
    predictions = predict(load_checkpoint(checkpoint), photos, top=1)
    assert out == "".join(f"{prediction}\n" for prediction in predictions)
    lines = out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == list(map(str, photos))
    assert all(re.search(r": (cat|dog) \d+\.\d%$", line) for line in lines)


@pytest.mark.parametrize("std", ["pixel", "per_image"])
def test_stats_are_those_of_the_training_images(std, call):
    code, out, _ = call("stats", "shapes", "--std", std)
    assert code == 0
    assert out.strip() == str(compute_channel_stats(shapes_module.shapes()[0].images, std=std))


def test_summary_is_the_librarys(call):
    code, out, _ = call("summary", "single_tower", "--image-size", 100, "--num-classes", 7)
    assert code == 0
    assert out == f"{summary('single_tower', image_size=100, num_classes=7)}\n"


def test_summary_is_of_the_papers_network_where_nothing_is_said(call):
    assert call("summary")[1] == f"{summary('paper')}\n"


def test_info_is_about_this_machine(call):
    code, out, err = call("info")
    assert (code, err) == (0, "")
    rows = [tuple(re.split(" {2,}", line, maxsplit=1)) for line in out.splitlines()]
    assert rows[: len(devices.versions())] == [*devices.versions().items()]
    known = dict(rows)
    assert known["system"] == platform.platform()
    assert known["processor"].endswith(f", {torch.get_num_threads()} threads")
    assert any(value.startswith("cpu") for name, value in rows if name == "device")


INFO_OF_A_SMALL_MACHINE = """\
python       3.14.0
alexnet-lib  1.2.3
torch        1.2.3
torchvision  1.2.3
numpy        1.2.3
pillow       1.2.3
safetensors  1.2.3
system       Plan9-4
processor    quick, 3 threads
kernels      none: torch's operations are used
device       cpu (the default): multiplies float32
"""
INFO_OF_A_LARGE_MACHINE = """\
python       3.14.0
alexnet-lib  1.2.3
torch        1.2.3
torchvision  1.2.3
numpy        1.2.3
pillow       1.2.3
safetensors  1.2.3
system       Plan9-4
processor    quick, 3 threads
kernels      /kept/kernels.so
device       cpu: multiplies float32, bfloat16
device       cuda:0 old card (the default): multiplies float32
device       cuda:1 new card: multiplies float32, bfloat16
"""
CARDS = ("old card", "new card")


@pytest.mark.parametrize(
    ("cards", "features", "kernels", "expected"),
    [
        ((), {}, None, INFO_OF_A_SMALL_MACHINE),
        (
            CARDS,
            {"amx_bf16": True},
            SimpleNamespace(_name="/kept/kernels.so"),
            INFO_OF_A_LARGE_MACHINE,
        ),
    ],
    ids=["small", "large"],
)
def test_info_names_versions_processor_kernels_and_devices(
    cards, features, kernels, expected, call, monkeypatch
):
    for owner, name, answer in (
        (devices, "version", lambda package: "1.2.3"),
        (platform, "python_version", lambda: "3.14.0"),
        (platform, "platform", lambda: "Plan9-4"),
        (torch.cpu, "get_capabilities", lambda: {"cpu_name": "quick", **features}),
        (torch, "get_num_threads", lambda: 3),
        (cpu, "load", lambda: kernels),
        (torch.cuda, "is_available", lambda: bool(cards)),
        (torch.cuda, "device_count", lambda: len(cards)),
        (torch.cuda, "get_device_name", lambda device: cards[device.index]),
        (torch.cuda, "get_device_capability", lambda device: (7 + device.index, 0)),
        (torch.backends.mps, "is_available", lambda: False),
    ):
        monkeypatch.setattr(owner, name, answer)
    assert call("info") == (0, expected, "")


def test_download_cifar10_says_where_the_data_are(call, monkeypatch):
    monkeypatch.setattr(alexnet_lib, "download_cifar10", lambda root: Path(root) / "here")
    code, out, _ = call("download", "cifar10", "--root", "elsewhere")
    assert code == 0
    assert out == f"CIFAR-10 is in {Path('elsewhere') / 'here'}\n"


def test_a_folder_with_cifar10_is_known_by_its_files(call, tmp_path, monkeypatch):
    cifar = FakeCifar10(tmp_path, monkeypatch)
    code, out, _ = call("stats", cifar.batches.parent)
    assert code == 0
    assert out.strip() == str(
        compute_channel_stats(cifar10_module.cifar10(cifar.batches)[0].images)
    )


@pytest.mark.parametrize(("options", "calls"), [((), ["kept"]), (("--no-keep-memory",), [])])
def test_memory_is_kept_unless_the_user_says_no(options, calls, call, kept_memory, tmp_path):
    call("train", "shapes", *TINY_RUN, "--out", tmp_path / "run", *options)
    assert kept_memory == calls
    call("evaluate", tmp_path / "run", "shapes", *options)
    assert kept_memory == 2 * calls


OPTIONS_OF_THE_RECIPE = (
    "--epochs",
    "--train-images",
    "--image-size",
    "--batch-size",
    "--learning-rate",
    "--architecture",
)
DEFAULTS_OF_THE_RECIPE = (
    "Options from --epochs to --architecture that are not given are the recipe's."
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_0_and_states_what_is_taken_by_default(command, call):
    code, out, _ = call(*command.split(), "--help")
    assert code == 0
    assert "Usage:" in out
    text = " ".join(out.split())
    # "--this / --no-this" is one option.
    options = re.split(r"(?<!/) (?=--[a-z])", text.partition(" Options:")[2])[1:]
    # A mandatory option has no default.
    silent = [o.split()[0] for o in options if "default" not in o and "[required]" not in o]
    # One sentence states those of the recipe's options.
    told_together = OPTIONS_OF_THE_RECIPE if DEFAULTS_OF_THE_RECIPE in text else ()
    assert silent == [*told_together, "--help"]


def test_without_arguments_the_commands_are_listed(call):
    out = "".join(call()[1:])
    assert all(command.split()[0] in out for command in COMMANDS)


# What a mistake looks like.


def assert_one_line(result: tuple[int, str, str], status: int, *words: str) -> None:
    code, out, err = result
    assert code == status
    assert not out
    line = err.splitlines()[-1]
    assert line.startswith("error: ")
    assert "Traceback" not in err
    for word in words:
        assert word in line


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--epochs", "0"), "epochs is 0"),
        (("--recipe", "plain"), "recipe is 'plain'"),
        (("--device", "gpu"), "device is 'gpu'"),
        (("--precision", "int8"), "precision is 'int8'"),
        (("--image-size", "0"), "image_size is 0"),
        (("--architecture", "vgg"), "architecture is 'vgg'"),
        (("--train-images", "9"), "train_images is 9"),
        (("--set", "rate=1"), "overrides has ['rate']; expected names among"),
        (("--set", "name=mine"), "overrides has ['name']"),
        (("--set", "dropout"), "--set is 'dropout'; expected FIELD=VALUE"),
        (("--set", "dropout=2"), "dropout is 2"),
        (("--set", "dropout="), "dropout is ''"),
        (("--set", "nesterov=1"), "nesterov is 1"),
        (("--set", "freeze=conv9"), "freeze has ['conv9']; expected names among conv1"),
        (("--recipe", "nowhere.json"), "nowhere.json"),
        (("--recipe", "."), "recipe.json"),
    ],
)
def test_an_option_out_of_its_range_is_named_in_one_line(options, word, call, tmp_path):
    result = call("train", "shapes", *TINY_RUN, "--out", tmp_path / "run", *options)
    assert_one_line(result, 2, word)
    assert result[2].count("\n") == 1


SAME_BY_SET = ("--set", "learning_rate=1", "--set", "batch_size=8")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--epochs", "3", "--set", "epochs=2"), "epochs is given"),
        (("--epochs", "2", "--set", "epochs=2"), "epochs is given"),
        (
            ("--learning-rate", "1", "--batch-size", "8", *SAME_BY_SET),
            "batch_size, learning_rate is given",
        ),
    ],
)
def test_a_field_that_is_given_twice_is_refused(options, words, call, tmp_path):
    result = call("train", "shapes", *options, "--out", tmp_path / "run")
    message = f"error: {words} as an option and by --set; expected one\n"
    assert result == (2, "", message)
    assert not (tmp_path / "run").exists()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--set", "rate=1"), "overrides has ['rate']"),
        (("--set", "dropout"), "--set is 'dropout'"),
        (("--recipe", "plain"), "recipe is 'plain'"),
    ],
)
def test_a_mistake_in_what_doctor_looks_at_is_named_in_one_line(options, word, call):
    assert_one_line(call("doctor", "shapes", *TINY_DOCTOR, *options), 2, word)


@pytest.mark.bad_input
@pytest.mark.parametrize(("views", "word"), [(3, "views is 3"), (10, "views is 10")])
def test_views_that_cannot_be_had_are_named_in_one_line(views, word, call, tmp_path):
    file = write_checkpoint(tmp_path)
    write_class_folders(tmp_path / "photos" / "train")
    write_class_folders(tmp_path / "photos" / "test")
    options = ("--views", views, "--device", "cpu")
    assert_one_line(call("evaluate", file, tmp_path / "photos", *options), 2, word)


@pytest.mark.bad_input
def test_an_out_that_cannot_be_written_is_named(call, tmp_path):
    (tmp_path / "file").write_text("")
    result = call("train", "shapes", *TINY_RUN, "--out", tmp_path / "file" / "run")
    assert_one_line(result, 2, str(tmp_path / "file" / "run"), "cannot be written")


@pytest.mark.bad_input
def test_an_out_that_holds_a_run_is_refused(call, tmp_path):
    arguments = ("train", "shapes", *TINY_RUN, "--out", tmp_path / "run")
    assert call(*arguments)[0] == 0
    assert_one_line(call(*arguments), 2, "holds a run already")


@pytest.mark.bad_input
def test_demo_leaves_the_run_on_other_data_alone(call, tmp_path):
    photos = write_class_folders(tmp_path / "photos", count=12)
    call("train", photos, *TINY_RUN, "--out", tmp_path / "run")
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    assert_one_line(call("demo", "--out", tmp_path / "run"), 2, "holds a run already")
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before


@pytest.mark.bad_input
@pytest.mark.parametrize("spoil", [False, True])
def test_demo_leaves_a_training_run_on_shapes_alone(call, tmp_path, spoil):
    run = tmp_path / "run"
    call("train", "shapes", *TINY_RUN, "--out", run)
    if spoil:
        (run / "recipe.json").write_text("{", encoding="utf-8")
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    assert_one_line(call("demo", "--out", run), 2, "holds a run already")
    assert {file.name: file.read_bytes() for file in run.iterdir()} == before


@pytest.mark.bad_input
def test_a_failed_run_ends_with_1(call, monkeypatch):
    real = recipes.Recipe.criterion
    spoiled = lambda recipe, logits, labels: real(recipe, logits, labels) * float("nan")
    monkeypatch.setattr(recipes.Recipe, "criterion", spoiled)
    assert_one_line(call("train", "shapes", *TINY_RUN), 1, "epoch 1", "step 1", "not finite")


@pytest.mark.bad_input
def test_an_interrupted_run_ends_with_130(call, monkeypatch):
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(alexnet_lib, "fit", interrupted)
    code, out, err = call("train", "shapes", *TINY_RUN)
    assert (code, out) == (130, "")
    assert "Traceback" not in err


def no_folder(root: Path) -> str:
    return str(root)


def empty_folder(root: Path) -> str:
    root.mkdir()
    return f"{root} has no images"


def one_class(root: Path) -> str:
    write_class_folders(root, ["cat"])
    return "one class, 'cat'"


def text_named_jpg(root: Path) -> str:
    write_class_folders(root)
    (root / "dog" / "text.jpg").write_text("not a photo")
    return str(root / "dog" / "text.jpg")


@pytest.mark.bad_input
@pytest.mark.parametrize("make", [no_folder, empty_folder, one_class, text_named_jpg])
@pytest.mark.parametrize("command", ["train", "stats"])
def test_a_folder_that_cannot_be_used_is_named(make, command, call, tmp_path):
    named = make(tmp_path / "photos")
    options = TINY_RUN if command == "train" else ()
    assert_one_line(call(command, tmp_path / "photos", *options), 2, named)


def no_checkpoint(file: Path) -> str:
    return "no such file"


def damaged_checkpoint(file: Path) -> str:
    write_checkpoint(file.parent)
    file.write_bytes(file.read_bytes()[:-1])
    return "is damaged"


def text_checkpoint(file: Path) -> str:
    file.write_text("not a checkpoint")
    return "is damaged or not a safetensors file"


def foreign_checkpoint(file: Path) -> str:
    save_file(dict(AlexNet(2, architecture=TINY).state_dict()), file)
    return "was not written by save_checkpoint"


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "make", [no_checkpoint, damaged_checkpoint, text_checkpoint, foreign_checkpoint]
)
def test_a_checkpoint_that_cannot_be_used_is_named(make, call, tmp_path):
    file = tmp_path / "model.safetensors"
    word = make(file)
    photo = write_photo(tmp_path / "photo.png")
    assert_one_line(call("predict", photo, "--checkpoint", file), 2, str(file), word)


@pytest.mark.bad_input
def test_a_photo_that_is_none_is_named(call, tmp_path):
    photo = tmp_path / "photo.jpg"
    photo.write_text("not a photo")
    result = call("predict", photo, "--checkpoint", write_checkpoint(tmp_path))
    assert_one_line(result, 2, str(photo))


@pytest.mark.bad_input
def test_a_checkpoint_without_preprocessing_is_refused(call, tmp_path):
    file = tmp_path / "model.safetensors"
    save_checkpoint(file, AlexNet(2, architecture=TINY))
    photo = write_photo(tmp_path / "photo.png")
    assert_one_line(call("predict", photo, "--checkpoint", file), 2, "preprocess is None")
    assert_one_line(call("evaluate", file, "shapes"), 2, "contains no preprocessing")


@pytest.mark.bad_input
def test_data_of_other_classes_than_the_networks_are_refused(call, tmp_path):
    checkpoint = write_checkpoint(tmp_path, classes=("cat", "cow"))
    write_class_folders(tmp_path / "photos")
    result = call("evaluate", checkpoint, tmp_path / "photos", "--device", "cpu")
    assert_one_line(result, 2, "('cat', 'cow')", "('cat', 'dog')")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "arguments", [("fly",), ("train",), ("train", "shapes", "--epoch"), ("predict", "photo.jpg")]
)
def test_a_command_line_that_cannot_be_read_ends_with_2(arguments, call):
    code, out, err = call(*arguments)
    assert code == 2
    assert not out
    assert "Usage:" in err


# The real thing.


def test_the_package_is_a_command():
    command = [sys.executable, "-m", "alexnet_lib", "--help"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert all(name.split()[0] in done.stdout for name in COMMANDS)


@pytest.mark.bad_input
def test_a_mistake_prints_one_line_and_no_traceback(tmp_path):
    command = [sys.executable, "-m", "alexnet_lib", "stats", str(tmp_path / "none")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path / 'none'}: no such folder\n"
