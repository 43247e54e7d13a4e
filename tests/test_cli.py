"""The promises of the command line: what it prints, its exit codes, one line for a mistake."""

import io
import itertools
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import FakeCifar10, random_pixels, write_class_folders
from PIL import Image
from safetensors.torch import save_file
from tiny import TINY, TINY_OVERRIDES, use_tiny

import alexnet_lib
from alexnet_lib import (
    AlexNet,
    EvalMetrics,
    Preprocess,
    RunOptions,
    cli,
    compute_channel_stats,
    devices,
    diagnose,
    evaluate,
    inference,
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
from alexnet_lib.interrupts import Interrupted
from alexnet_lib.kernels import cpu
from alexnet_lib.training import fit as fit_module
from alexnet_lib.training import recipes
from alexnet_lib.training.planning import Speed, Writing
from alexnet_lib.training.run_files import RunFiles

TINY_RUN = ("--architecture", "tiny", "--batch-size", "16", "--epochs", "1", "--device", "cpu")
COMMANDS = (
    "train",
    "doctor",
    "demo",
    "evaluate",
    "figures",
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
        "trained on shapes: 54 images, 1 epoch\n"
        f"test accuracy {accuracy:.1%} on 20 images\n"
        f"results in {run}; next, for example\n"
        f"  alexnet-lib evaluate {run}\n"
        f"  alexnet-lib predict photo.jpg --checkpoint {run}\n"
    )
    assert "epoch 1/1: loss" in err
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
    ("optimizer", "'sgd'", "sgd"),
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
    settings = ("--set", "freeze=conv1", "--set", "color_noise=0.2", "--seed", 5)
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


@pytest.fixture
def hundred_seconds(monkeypatch):
    """A step takes that long, as measured, and nothing else takes any time."""
    speed = Speed(step=100.0, first_steps=0.0, validation_image=0.0, test_image=0.0)
    monkeypatch.setattr(fit_module, "measure_speed", lambda *_, **__: speed)
    monkeypatch.setattr(RunFiles, "writing", lambda *_: Writing())


# There is time for three epochs of four steps, which take 20 minutes.
SAME_SIZE = ("--set", "growth_fraction=0")
PLANNED = (*TINY_RUN, *SAME_SIZE, "--epochs", "9", "--max-minutes", "27")


@pytest.mark.usefixtures("hundred_seconds")
def test_max_minutes_plans_the_run(call, tmp_path):
    code, out, err = call("train", "shapes", *PLANNED, "--out", "run")
    assert (code, out.splitlines()[0]) == (0, "trained on shapes: 54 images, 3 epochs")
    assert "plan for 27 minutes: 3 of 9 epochs" in err
    stored = json.loads(Path("run", "recipe.json").read_text())
    assert stored["recipe"]["epochs"] == 3
    assert stored["planned_from"] == {"max_minutes": 27, "epochs": 9, "train_images": None}
    assert call("train", "shapes", "--recipe", "run", "--device", "cpu", "--out", "again")[0] == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "again")


@pytest.mark.usefixtures("hundred_seconds")
def test_a_planned_run_that_is_finished_is_told_from_another_one(call):
    call("train", "shapes", *PLANNED, "--out", "run")
    auto = ("--out", "run", "--resume", "auto")
    for options, status in (
        ((*PLANNED, *auto), 0),
        (("--resume", "run"), 0),
        (("--resume", "run", "--max-minutes", "27"), 0),
        ((*PLANNED, *auto, "--max-minutes", "28"), 2),
        ((*PLANNED, *auto, "--epochs", "8"), 2),
        ((*PLANNED[:-2], *auto), 2),
    ):
        code, out, err = call("train", "shapes", *options)
        assert code == status, options
        words = "the run in run is finished: 3 epochs" if code == 0 else "in 'run' is finished"
        assert words in out + err


@pytest.mark.usefixtures("hundred_seconds")
def test_auto_finds_the_planned_run_of_the_same_command(call, monkeypatch):
    call("train", "shapes", *PLANNED)
    (folder,) = Path("runs").iterdir()
    (folder / "result.json").unlink()
    seen = []
    monkeypatch.setattr(alexnet_lib, "fit", lambda *_, **named: seen.append(named["out"]))
    monkeypatch.setattr(cli, "_report", lambda *_: None)
    for options in (PLANNED, (*PLANNED, "--max-minutes", "28"), PLANNED[:-2]):
        assert call("train", "shapes", *options, "--resume", "auto")[0] == 0
    assert [out == folder for out in seen] == [True, False, False]


TINY_DOCTOR = ("--set", "architecture=tiny", "--set", "batch_size=16", "--device", "cpu")


def test_doctor_prints_a_row_for_each_layer_and_what_looks_wrong(call, tmp_path):
    options = ("--set", "learning_rate=1e-9", "--steps", 3)
    code, out, _ = call("doctor", "shapes", *TINY_DOCTOR, *options)
    assert code == 0
    overrides = {"architecture": "tiny", "batch_size": 16, "learning_rate": 1e-9}
    diagnosis = diagnose("shapes", overrides=overrides, steps=3, options=RunOptions(device="cpu"))
    assert out == f"{diagnosis}\n"
    assert [line.split()[0] for line in out.splitlines()[4:6]] == ["conv1", "fc2"]
    assert "one batch, 3 steps: loss " in out
    assert re.search(r"\n- the weights hardly change: .*\(1e-09\)\n", out, re.DOTALL)
    assert not list(tmp_path.iterdir())


def test_doctor_takes_the_recipe_and_the_seed_of_a_run(call, tmp_path):
    call("train", "shapes", *TINY_RUN, "--seed", 5, "--out", tmp_path / "run")
    options = ("--recipe", tmp_path / "run", "--device", "cpu", "--steps", 2)
    stored = call("doctor", "shapes", *options)
    assert stored[0] == 0
    assert call("doctor", "shapes", *options, "--seed", 5) == stored
    assert call("doctor", "shapes", *options, "--seed", 0) != stored


def test_train_writes_its_metrics_for_tensorboard_to_the_run(call, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    for options in ((), ("--tensorboard",)):
        assert call("train", "shapes", *TINY_RUN, *options)[0] == 0
    runs = [{file.name.split(".")[0] for file in run.iterdir()} for run in Path("runs").iterdir()]
    assert sum("events" in files for files in runs) == 1


def test_tensorboard_that_is_not_installed_is_said_before_anything_is_written(
    call, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    result = call("train", "shapes", *TINY_RUN, "--tensorboard")
    assert_one_line(result, 2, "needs TensorBoard", "pip install tensorboard")
    assert not [*Path("runs").iterdir()]


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


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ("photos", ()),
        ("photos", ("--classes", "dog,cat")),
        ("~/photos", ()),
        ("parts", ("--part", "train=a b", "--part", "test=c")),
    ],
)
def test_evaluate_repeats_the_runs_own_test(data, options, call, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_class_folders(tmp_path / "photos", ("cat", "cow", "dog"), count=20)
    for part in ("a b", "c"):
        write_class_folders(tmp_path / "parts" / part, count=12)
    code, out, _ = call("train", data, *TINY_RUN, *options, "--out", "~/run", "--seed", 3)
    assert code == 0
    test = json.loads((tmp_path / "run" / "result.json").read_text())["test"]
    program, *arguments = shlex.split(out.splitlines()[-2])
    assert (program, arguments[0]) == ("alexnet-lib", "evaluate")
    code, out, err = call(*arguments, "--device", "cpu")
    assert code == 0, err
    assert out.startswith(f"loss {test['loss']:.4f}, accuracy {test['accuracy']:.1%}")
    assert f"({test['images']} images)" in out


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


INFO_OF_A_SMALL_MACHINE = f"""\
python       3.14.0
alexnet-lib  {alexnet_lib.__version__}
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
INFO_OF_A_LARGE_MACHINE = f"""\
python       3.14.0
alexnet-lib  {alexnet_lib.__version__}
torch        1.2.3
torchvision  1.2.3
numpy        1.2.3
pillow       1.2.3
safetensors  1.2.3
system       Plan9-4
processor    quick, 3 threads
kernels      /kept/kernels.so
device       cpu: multiplies float32, bfloat16
device       cuda:0 old card (the default): multiplies float32, float16
device       cuda:1 new card: multiplies float32, bfloat16, float16
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
        (("--max-minutes", "0"), "max_minutes is 0.0; expected a finite number above 0"),
        (("--max-minutes", "nan"), "max_minutes is nan; expected a finite number above 0"),
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
    assert call("train", "shapes", *TINY_RUN) == (130, "", "error: interrupted\n")


# Wider than a terminal.
RUN_WITH_SPACE = ("--out", "a run of a long name" * 6)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "shapes", *TINY_RUN),
        ("train", "shapes", *TINY_RUN, *RUN_WITH_SPACE),
        ("train", "shapes", *TINY_RUN, *RUN_WITH_SPACE, "--resume", "auto"),
        ("train", "shapes", *TINY_RUN, *RUN_WITH_SPACE, "--resume=auto"),
        ("demo", "--device", "cpu", *RUN_WITH_SPACE),
    ],
)
def test_what_is_printed_after_an_interruption_goes_on_with_the_run(arguments, call, monkeypatch):
    def interrupted(run: object) -> None:
        raise Interrupted(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "_test", interrupted)
        code, out, err = call(*arguments)
    *_, to_go_on, again, error = err.splitlines()
    expected = (130, "", "to go on:", "error: interrupted by SIGINT")
    assert (code, out, to_go_on, error) == expected
    program, *arguments = shlex.split(again)
    assert (program, again.count("--resume")) == ("alexnet-lib", 1)
    code, out, _ = call(*arguments)
    assert (code, out.splitlines()[0]) == (0, "trained on shapes: 54 images, 1 epoch")
    assert len([*Path().rglob("result.json")]) == 1


def test_after_an_interruption_the_line_of_torchrun_is_the_one_to_go_on(monkeypatch):
    stop = Interrupted(signal.SIGTERM)
    stop.run = SimpleNamespace(folder=Path("runs/a"))
    monkeypatch.setattr(sys, "argv", ["alexnet-lib", "train", "shapes", "--resume", "auto"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli._how_to_go_on("train", stop) == [
        "to go on with torchrun and its options as before:",
        "  -m alexnet_lib train shapes --resume runs/a",
    ]


@pytest.mark.bad_input
def test_commands_that_do_not_compute_together_are_refused_in_torchrun(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for command in ("train", "evaluate"):
        cli._main(SimpleNamespace(invoked_subcommand=command))
    with pytest.raises(ValueError, match="demo was started as one of 2 processes"):
        cli._main(SimpleNamespace(invoked_subcommand="demo"))


@pytest.mark.bad_input
def test_several_processes_of_srun_alone_are_warned_that_each_trains_by_itself(call, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    code, _, err = call("train", "shapes", *TINY_RUN)
    assert code == 0
    assert "srun has started this command several times" in err


def test_images_of_one_class_are_evaluated_and_measured(call, tmp_path):
    assert call("train", "shapes", *TINY_RUN, "--out", "run")[0] == 0
    write_class_folders(tmp_path / "one", ["circle"], count=3)
    code, out, err = call("evaluate", "run", "one")
    assert (code, "(3 images)" in out) == (0, True), err
    assert call("stats", "one")[0] == 0
    assert "one has one class, 'circle'" in call("train", "one", *TINY_RUN)[2]


@pytest.mark.bad_input
def test_an_interrupted_download_says_what_is_kept(call, monkeypatch):
    def interrupted(root: object) -> None:
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(alexnet_lib, "download_cifar10", interrupted)
    kept = "what was downloaded is kept; to go on, repeat the command"
    assert call("download", "cifar10") == (130, "", f"{kept}\nerror: interrupted by SIGINT\n")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (
            RuntimeError("CUDA out of memory: 9 GiB\nframe #0: at::empty"),
            1,
            "CUDA out of memory: 9 GiB",
        ),
        (MemoryError(), 1, "MemoryError"),
        (MemoryError("Unable to allocate 4 TiB"), 1, "Unable to allocate 4 TiB"),
        (FloatingPointError("the loss is not finite"), 1, "the loss is not finite"),
        (OverflowError("int too large"), 2, "int too large"),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), 2, "'utf-8' codec can't decode byte"),
        (OSError(28, "No space left on device"), 2, "[Errno 28] No space left on device"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_ends_a_run_is_told_in_one_line(error, status, line, call, monkeypatch):
    def failing(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(alexnet_lib, "fit", failing)
    result = call("train", "shapes", *TINY_RUN)
    assert_one_line(result, status, f"error: {line}")
    assert result[2].count("\n") == 1


@pytest.mark.bad_input
def test_a_defect_of_the_library_shows_where_it_is(call, monkeypatch):
    monkeypatch.setattr(alexnet_lib, "fit", lambda *arguments, **options: {}["defect"])
    monkeypatch.setattr(sys, "argv", ["alexnet-lib", "train", "shapes"])
    with pytest.raises(KeyError, match="defect"):
        cli.main()


@pytest.mark.bad_input
def test_pythons_development_mode_shows_every_traceback(tmp_path):
    command = [sys.executable, "-X", "dev", "-m", "alexnet_lib", "stats", str(tmp_path / "none")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert "Traceback" in done.stderr
    assert f"{tmp_path / 'none'}: no such folder" in done.stderr


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
@pytest.mark.parametrize(
    ("command", "make"),
    [
        ("train", one_class),
        *itertools.product(["train", "stats"], [no_folder, empty_folder, text_named_jpg]),
    ],
)
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
    return "a text in place of the file"


def foreign_checkpoint(file: Path) -> str:
    save_file(dict(AlexNet(2, architecture=TINY).state_dict()), file)
    return "was not written by save_checkpoint"


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "make", [no_checkpoint, damaged_checkpoint, text_checkpoint, foreign_checkpoint]
)
@pytest.mark.filterwarnings("ignore:.*has no checksum")
def test_a_checkpoint_that_cannot_be_used_is_named(make, call, tmp_path):
    file = tmp_path / "model.safetensors"
    word = make(file)
    photo = write_photo(tmp_path / "photo.png")
    assert_one_line(call("predict", photo, "--checkpoint", file), 2, str(file), word)


@pytest.mark.bad_input
def test_a_photo_that_is_an_address_is_named(call, tmp_path):
    result = call("predict", ADDRESS, "--checkpoint", write_checkpoint(tmp_path))
    assert_one_line(result, 1, f"image 0 is '{ADDRESS}', an address; expected a path")


@pytest.mark.bad_input
def test_a_photo_that_is_none_is_named(call, tmp_path):
    photo = tmp_path / "photo.jpg"
    photo.write_text("not a photo")
    result = call("predict", photo, "--checkpoint", write_checkpoint(tmp_path))
    assert_one_line(result, 1, f"{photo} cannot be read as an image: ")


@pytest.mark.bad_input
def test_a_checkpoint_without_preprocessing_is_refused(call, tmp_path):
    file = tmp_path / "model.safetensors"
    save_checkpoint(file, AlexNet(2, architecture=TINY))
    photo = write_photo(tmp_path / "photo.png")
    assert_one_line(call("predict", photo, "--checkpoint", file), 2, "preprocess is None")
    assert_one_line(call("evaluate", file, "shapes"), 2, "preprocess is None")


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


# What people bring: broken photos, names of any alphabet, paths from the home folder.


def write_broken(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("not a photo")
    return file


@pytest.mark.bad_input
def test_predict_goes_on_after_a_bad_photo_and_ends_with_1(call, tmp_path):
    checkpoint = write_checkpoint(tmp_path)
    good = [write_photo(tmp_path / f"{i}.png") for i in range(3)]
    bad = [write_broken(tmp_path / "bad.jpg"), tmp_path / "none.jpg"]
    photos = [good[0], bad[0], good[1], "~nobody-of-this-name/x.png", bad[1], good[2]]
    code, out, err = call("predict", *photos, "--checkpoint", checkpoint, "--top", 1)
    assert code == 1
    predictions = predict(load_checkpoint(checkpoint), good, top=1)
    assert out == "".join(f"{prediction}\n" for prediction in predictions)
    lines = err.splitlines()
    assert [line.startswith("error: ") for line in lines] == [True] * 3
    assert lines[0] == (
        f"error: {bad[0]} cannot be read as an image: unknown format; expected "
        "one of JPEG, PNG, GIF, BMP, PPM, WEBP, TIFF, AVIF, JPEG2000, HEIF, DIB, TGA"
    )
    assert "'~nobody-of-this-name/x.png'" in lines[1]
    assert lines[2] == f"error: {bad[1]} cannot be read as an image: No such file or directory"


@pytest.mark.bad_input
@pytest.mark.skipif(not hasattr(os, "geteuid") or not os.geteuid(), reason="root may read all")
def test_predict_goes_on_after_a_photo_that_may_not_be_read(call, tmp_path):
    checkpoint = write_checkpoint(tmp_path)
    secret, photo = write_photo(tmp_path / "secret.png"), write_photo(tmp_path / "photo.png")
    secret.chmod(0)
    code, out, err = call("predict", secret, photo, "--checkpoint", checkpoint)
    assert (code, out.count("\n")) == (1, 1)
    assert err == f"error: {secret} cannot be read as an image: Permission denied\n"


def test_predict_takes_the_photos_of_a_folder(call, tmp_path):
    checkpoint = write_checkpoint(tmp_path)
    photos = write_class_folders(tmp_path / "photos")
    code, out, err = call("predict", photos, "--checkpoint", checkpoint, "--top", 1)
    assert (code, err) == (0, "")
    files = sorted(photos.rglob("*.png"))
    assert [line.partition(": ")[0] for line in out.splitlines()] == [*map(str, files)]


@pytest.mark.bad_input
def test_predict_prints_what_it_has_before_it_goes_on(call, tmp_path, monkeypatch):
    real = inference.answers

    def interrupted(*arguments, **options):
        yield next(real(*arguments, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(inference, "answers", interrupted)
    photo = write_photo(tmp_path / "photo.png")
    result = call("predict", photo, photo, "--checkpoint", write_checkpoint(tmp_path))
    assert (result[0], result[1].count("\n"), result[2]) == (130, 1, "error: interrupted\n")


@pytest.mark.bad_input
@pytest.mark.filterwarnings("default::UserWarning")
@pytest.mark.parametrize("size", [(8, 8), (120, 130)], ids=["in memory", "files"])
def test_train_evaluate_and_doctor_skip_bad_images_if_they_are_told_to(size, call, tmp_path):
    photos = write_class_folders(tmp_path / "photos", count=12, size=size)
    broken = write_broken(photos / "dog" / "broken.jpg")
    commands = (
        ("train", photos, *TINY_RUN, "--out", tmp_path / "run"),
        ("evaluate", write_checkpoint(tmp_path), photos, "--device", "cpu"),
        ("doctor", photos, *TINY_DOCTOR, "--steps", 1),
    )
    for command in commands:
        assert_one_line(call(*command), 2, f"{broken} cannot be read as an image")
    assert not (tmp_path / "run").exists()
    for command in commands:
        code, _, err = call(*command, "--on-bad-image", "skip")
        assert code == 0, command
        warned = [line for line in err.splitlines() if line.startswith("warning: ")]
        assert len(warned) == 1, err
        assert str(broken) in warned[0]
    assert "(24 images)" in call(*commands[1], "--on-bad-image", "skip")[1]


NAMES = ("café", "naïve – dash", "猫")  # noqa: RUF001


@pytest.fixture
def terminal(monkeypatch, tmp_path):
    """Runs the command line on streams of an encoding: status and what both streams hold."""

    def run(encoding: str, *arguments: object) -> tuple[int, str, str]:
        files = [(tmp_path / name).open("w", encoding=encoding) for name in ("out", "err")]
        monkeypatch.setattr(sys, "argv", ["alexnet-lib", *map(str, arguments)])
        with monkeypatch.context() as patch, files[0], files[1]:
            patch.setattr(sys, "stdout", files[0])
            patch.setattr(sys, "stderr", files[1])
            with pytest.raises(SystemExit) as ended:
                cli.main()
        texts = ((tmp_path / name).read_text(encoding=encoding) for name in ("out", "err"))
        return ended.value.code, *texts

    return run


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_names_that_a_terminal_cannot_show_are_escaped(encoding, terminal, tmp_path):
    checkpoint = write_checkpoint(tmp_path, NAMES)
    photos = write_class_folders(tmp_path / "photos", NAMES)
    # As Python stands for a byte of a name that it cannot decode.
    unknown = os.fsencode(tmp_path) + b"/caf\xe9.png"
    shown = [name.encode(encoding, "backslashreplace").decode(encoding) for name in NAMES]
    for command in (
        ("evaluate", checkpoint, photos, "--device", "cpu"),
        ("predict", photos / "猫" / "0.png", "--checkpoint", checkpoint),
        ("train", photos, *TINY_RUN, "--out", tmp_path / "猫"),
        ("evaluate", tmp_path / "猫", photos, "--device", "cpu"),
        ("stats", photos),
    ):
        code, out, err = terminal(encoding, *command)
        assert (code, "Traceback" in err) == (0, False), err
        if command[0] == "evaluate":
            rows = out.splitlines()[1:]
            assert [re.match(r".*?(?= {2,})", row)[0] for row in rows] == shown
    code, _, err = terminal(encoding, "predict", os.fsdecode(unknown), "--checkpoint", checkpoint)
    assert code == 1
    assert "\\udce9.png cannot be read as an image: No such file" in err
    assert terminal(encoding, "stats", tmp_path / "犬")[0] == 2


def test_names_are_those_of_the_files_also_where_the_locale_cannot_decode_them(call, monkeypatch):
    raw = "caf\udcc3\udca9"  # of a UTF-8 name in the locale "C"
    seen = {}
    monkeypatch.setattr(alexnet_lib, "fit", lambda *_, **options: seen.update(options))
    monkeypatch.setattr(cli, "_report", lambda *_: None)
    assert call("train", "photos", "--classes", f"{raw}, dog")[0] == 0
    assert seen["classes"] == ("café", "dog")


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_program_without_a_terminal_does_its_work(name, call, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, name, None)
    monkeypatch.setattr(sys, "argv", ["alexnet-lib", "train", "shapes", *TINY_RUN, "--out", "run"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    getattr(sys, name).close()
    assert ended.value.code == 0
    assert (tmp_path / "run" / "result.json").is_file()


def run_into(file: Any, *arguments: object) -> tuple[int, str]:
    """The command line in a process of its own with this standard output: status and errors."""
    command = [sys.executable, "-m", "alexnet_lib", *map(str, arguments)]
    # With a buffer, as it is without this variable, the error may come as late as at exit.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        command, check=False, stdout=file, stderr=subprocess.PIPE, text=True, env=env
    )
    return done.returncode, done.stderr


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
@pytest.mark.parametrize("command", ["summary", "predict"])
def test_a_reader_that_has_seen_enough_ends_the_program_quietly(command, tmp_path):
    arguments: tuple[object, ...] = ("summary",)
    if command == "predict":  # which writes line by line
        photo = write_photo(tmp_path / "photo.png")
        arguments = ("predict", photo, "--checkpoint", write_checkpoint(tmp_path))
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        assert run_into(pipe, *arguments) == (1, "")


@pytest.mark.bad_input
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_an_output_that_cannot_be_written_is_told_in_one_line():
    with Path("/dev/full").open("wb") as full:
        assert run_into(full, "summary") == (2, "error: [Errno 28] No space left on device\n")


def test_paths_may_begin_at_the_home_folder(call, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.setattr(
        cifar10_module,
        "_bad_files",
        lambda folder: pytest.fail(str(folder)) if "~" in str(folder) else [],
    )
    write_class_folders(home / "photos", count=12)
    photo = write_photo(home / "photo.png")
    assert call("train", "~/photos", *TINY_RUN, "--out", "~/run")[0] == 0
    assert (home / "run" / "result.json").is_file()
    again = ("--recipe", "~/run", "--device", "cpu")
    assert call("train", "~/photos", *again, "--out", "~/again")[0] == 0
    assert call("doctor", "~/photos", "--recipe", "~/run/recipe.json", "--steps", 1)[0] == 0
    assert call("evaluate", "~/run", "~/photos", "--device", "cpu")[0] == 0
    assert call("stats", "~/photos")[0] == 0
    for checkpoint in ("~/run", "~/run/last.safetensors"):
        code, out, _ = call("predict", "~/photo.png", "--checkpoint", checkpoint)
        assert (code, out.partition(":")[0]) == (0, "~/photo.png")
        assert (
            out.partition(":")[2]
            == call("predict", photo, "--checkpoint", checkpoint)[1].partition(":")[2]
        )
    assert call("demo", "--device", "cpu", "--out", "~/demo")[0] == 0
    assert call("demo", "--device", "cpu", "--out", "~/demo")[0] == 0
    code, out, _ = call("download", "cifar10", "--root", "~/data")
    assert (code, out) == (0, f"CIFAR-10 is in {home / 'data' / 'cifar-10-batches-py'}\n")
    assert not (tmp_path / "~").exists()


# Parts, classes, channels.


def test_the_folders_of_the_parts_can_be_named(call, tmp_path):
    photos = tmp_path / "photos"
    for part, count in (("a", 12), ("b", 3)):
        write_class_folders(photos / part, count=count)
    parts = ("--part", "train=a", "--part", "test=b")
    assert call("train", photos, *TINY_RUN, "--out", tmp_path / "run", *parts)[0] == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["test"]["images"] == 6
    assert "(6 images)" in call("evaluate", tmp_path / "run", photos, *parts, "--device", "cpu")[1]
    assert "2 classes" in call("doctor", photos, *TINY_DOCTOR, "--steps", 1, *parts)[1]
    assert call("stats", photos, *parts)[1] == call("stats", photos / "a")[1]


def test_without_parts_every_folder_is_a_class(call, tmp_path):
    photos = write_class_folders(tmp_path / "photos", ("test", "train"), count=12)
    options = ("--out", tmp_path / "run", "--part", "none")
    assert call("train", photos, *TINY_RUN, *options)[0] == 0
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").classes == ("test", "train")


def test_the_classes_can_be_chosen(call, tmp_path):
    photos = write_class_folders(tmp_path / "photos", ("cat", "cow", "dog"), count=12)
    classes = ("--classes", "dog, cat")
    assert call("train", photos, *TINY_RUN, "--out", tmp_path / "run", *classes)[0] == 0
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").classes == ("dog", "cat")
    code, out, _ = call("evaluate", tmp_path / "run", photos, "--device", "cpu", *classes)
    assert (code, "(24 images)" in out) == (0, True)
    assert "2 classes" in call("doctor", photos, *TINY_DOCTOR, "--steps", 1, *classes)[1]
    assert call("stats", photos, *classes)[1] != call("stats", photos)[1]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--part", "a"), "--part is 'a'; expected PART=NAME, or none"),
        (("--part", "=a"), "--part is '=a'; expected PART=NAME, or none"),
        (("--part", "none", "--part", "train=cat"), "--part is 'none'; expected PART=NAME"),
        (("--part", "train=cat", "--part", "train=dog"), "--part is given twice for train"),
        (("--part", "exam=cat"), "parts has ['exam']"),
        (("--part", "train=cow"), "cow"),
        (("--classes", "cat,cat"), "classes is ('cat', 'cat')"),
        (("--classes", "cat,"), "classes"),
        (("--classes", "cat,cow"), "cow"),
        (("--on-bad-image", "ignore"), "on_bad_image is 'ignore'; expected one of 'stop', 'skip'"),
        (("--parallel", "hybird"), "parallel is 'hybird'; expected one of 'data', 'hybrid'"),
        (("--parallel", "towers"), "parallel is 'towers', and the number of processes 1; expected"),
        (("--set", "epochs=1", "--set", "epochs=2"), "--set is given twice for epochs"),
        (("--set", "=1"), "--set is '=1'; expected FIELD=VALUE"),
        (("--set", "background=#gg"), "background is '#gg'"),
        (("--set", "freeze=('conv1', 3)"), "freeze is ('conv1', 3)"),
        (("--num-workers", "-1"), "num_workers is -1; expected an integer from 0 to 1024"),
        (("--seed", "-1"), "seed is -1; expected an integer from 0"),
        (("--learning-rate", "1e999"), "learning_rate is inf"),
        (("--out", "~nobody-of-this-name/x"), "'~nobody-of-this-name/x'"),
    ],
)
def test_a_mistake_in_the_options_of_train_is_told_in_one_line(options, word, call, tmp_path):
    photos = write_class_folders(tmp_path / "photos", count=12)
    options = (*TINY_RUN[:-4], "--device", "cpu", "--out", tmp_path / "run", *options)
    result = call("train", photos, *options)
    assert_one_line(result, 2, word)
    assert result[2].count("\n") == 1


def test_a_network_of_one_channel_is_evaluated_and_predicts_as_such(call, tmp_path):
    photos = write_class_folders(tmp_path / "photos", count=12)
    settings = ("--set", "channels=1", "--set", "background=#fff")
    assert call("train", photos, *TINY_RUN, "--out", tmp_path / "run", *settings)[0] == 0
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").preprocess.channels == 1
    code, out, _ = call("evaluate", tmp_path / "run", photos, "--device", "cpu")
    assert (code, "(24 images)" in out) == (0, True)
    photo = photos / "cat" / "0.png"
    assert call("predict", photo, "--checkpoint", tmp_path / "run")[0] == 0


def test_classes_without_images_have_no_accuracy(call, tmp_path):
    write_colors(tmp_path / "photos", "blue", ("blue", "blue"))
    write_colors(tmp_path / "photos", "red", ("red", "green"))
    code, out, _ = call(
        "evaluate", write_color_checkpoint(tmp_path), tmp_path / "photos", "--device", "cpu"
    )
    assert code == 0
    assert out.splitlines()[1:] == [
        "blue      100.0%",
        "green  no images",
        "red        50.0%  most often confused with green (1)",
    ]


def test_where_an_accuracy_has_no_meaning_there_is_no_table(call, tmp_path, monkeypatch):
    metrics = EvalMetrics(0.5, None, {}, None, (), 4, 1.0)
    monkeypatch.setattr(alexnet_lib, "evaluate", lambda *_, **options: metrics)
    photos = write_class_folders(tmp_path / "photos")
    assert call("evaluate", write_checkpoint(tmp_path), photos)[:2] == (0, f"{metrics}\n")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("freeze=", ()),
        ("freeze=none", ()),
        ("freeze=conv1", ("conv1",)),
        ("freeze=conv1,relu1", ("conv1", "relu1")),
        ("freeze=['conv1', 'relu1']", ("conv1", "relu1")),
        ("freeze=('conv1',)", ("conv1",)),
        ("background=#fff", "#fff"),
        ("background='#fff'", "#fff"),
        (" background = black ", "black"),
        ("accumulation_steps=4", 4),
        ("early_stopping=none", None),
        ("drop_last=TRUE", True),
        ("learning_rate=1e-3", 0.001),
        ("weights=a=b.pth", "a=b.pth"),
        ("weights=" + "(" * 5000, "(" * 5000),
    ],
)
def test_a_value_is_read_as_what_it_looks_like(text, value, call, monkeypatch):
    seen = {}
    monkeypatch.setattr(alexnet_lib, "fit", lambda *_, **options: seen.update(options))
    monkeypatch.setattr(cli, "_report", lambda *_: None)
    assert call("train", "shapes", "--set", text)[0] == 0
    assert seen["overrides"] == {text.partition("=")[0].strip(): value}


def test_a_folder_with_the_name_of_a_recipe_is_spoken_of(call):
    call("train", "shapes", *TINY_RUN, "--out", "tutorial")
    code, _, err = call("train", "shapes", *TINY_RUN, "--recipe", "tutorial", "--out", "named")
    note = "the folder of this name is not used: its name is './tutorial'"
    assert (code, err.splitlines()[0]) == (0, f"--recipe is 'tutorial', the recipe; {note}")
    Path("modern").mkdir()  # of something else
    assert "./modern" not in call("train", "shapes", *TINY_RUN, "--out", "other")[2]


@pytest.mark.parametrize("command", [*COMMANDS, "download", ""])
def test_help_fits_into_80_columns(command, call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = "".join(call(*command.split(), "--help")[1:]).splitlines()
    assert max(map(len, lines)) <= 80


def test_the_options_that_are_said_to_be_the_recipes_stand_together(call):
    options = re.findall(r"^  (--[a-z-]+)", call("train", "--help")[1], re.MULTILINE)
    first, last = options.index("--epochs"), options.index("--architecture")
    assert tuple(options[first : last + 1]) == OPTIONS_OF_THE_RECIPE


# The real thing.


def test_version_and_help_have_their_usual_options(call):
    assert call("--version") == (0, f"alexnet-lib {alexnet_lib.__version__}\n", "")
    for command in ("", "train", "download cifar10"):
        assert call(*command.split(), "-h") == call(*command.split(), "--help")


ADDRESS = "https://example.org/file"


def test_after_training_the_next_commands_are_said_and_run(call, tmp_path):
    _, output, _ = call("train", "shapes", *TINY_RUN, "--out", "my run")
    Image.new("RGB", (20, 20)).save("photo.jpg")
    said = [line.strip() for line in output.splitlines() if line.startswith("  ")]
    for line in said:
        program, *arguments = shlex.split(line)
        assert program == "alexnet-lib"
        status, output, _ = call(*arguments)
        assert status == 0
        assert "%" in output
    assert [shlex.split(line)[1] for line in said] == ["evaluate", "predict"]


def test_a_command_to_copy_is_one_line_whatever_its_length(call, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    data, run = tmp_path / ("many photos " * 8 + "1"), tmp_path / ("a run " * 20 + "1")
    parts = [("--part", f"{part}={part} images {'1' * 80}") for part in ("train", "test")]
    for _, part in parts:
        write_class_folders(data / part.partition("=")[2], count=12)
    options = [word for part in parts for word in part]
    _, out, _ = call("train", data, *TINY_RUN, *options, "--out", run)
    commands = [shlex.split(line) for line in out.splitlines() if line.startswith(" ")]
    assert commands == [
        ["alexnet-lib", "evaluate", str(run), *options],
        ["alexnet-lib", "predict", "photo.jpg", "--checkpoint", str(run)],
    ]


@pytest.mark.filterwarnings("default::UserWarning")
def test_the_next_command_skips_bad_images_where_the_run_did(call, tmp_path):
    photos = write_class_folders(tmp_path / "photos", count=12)
    write_broken(photos / "dog" / "broken.jpg")
    _, out, _ = call("train", photos, *TINY_RUN, "--out", "run", "--on-bad-image", "skip")
    assert call(*shlex.split(out.splitlines()[-2])[1:])[0] == 0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("out", "err", "read"),
    [
        (Terminal(), None, ["test: loss"]),  # both in one terminal
        (io.StringIO(), Terminal(), ["test accuracy"]),  # > file
        (Terminal(), io.StringIO(), ["test accuracy"]),  # 2> /dev/null
    ],
)
def test_a_terminal_shows_the_test_once_and_the_output_alone_has_it(out, err, read, monkeypatch):
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", out if err is None else err)
    monkeypatch.setattr(sys, "argv", ["alexnet-lib", "train", "shapes", *TINY_RUN])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert re.findall(r"test: loss|test accuracy", out.getvalue()) == read
    assert err is None or re.findall(r"test: loss|test accuracy", err.getvalue()) == ["test: loss"]


def test_figures_open_data_as_the_other_commands_do(call, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        alexnet_lib, "write_figures", lambda run, **options: seen.update(options) or [run]
    )
    options = ("--part", "train=a", "--classes", "b,c", "--on-bad-image", "skip")
    assert call("figures", "run", "moved", *options) == (0, "run\n", "")
    expected = {"parts": {"train": "a"}, "classes": ("b", "c"), "on_bad_image": "skip"}
    assert seen == {"data": "moved", "progress": False, **expected}


def test_the_curves_of_a_run_are_drawn_while_it_trains(call, tmp_path):
    call("train", "shapes", *TINY_RUN, "--out", "run", "--figures")
    assert "over 1 epoch" in (tmp_path / "run/figures/learning_curves.svg").read_text()


def test_evaluate_takes_the_data_of_the_run(call, tmp_path):
    call("train", "shapes", *TINY_RUN, "--out", "run")
    expected = call("evaluate", "run", "shapes")
    assert call("evaluate", "run") == expected
    assert call("evaluate", "run/last.safetensors")[0] == 0


def test_without_data_there_must_be_those_of_a_run(call, tmp_path):
    write_class_folders(tmp_path / "images", count=20)
    call("train", "images", *TINY_RUN, "--out", "run")
    (tmp_path / "images").rename("moved")
    for folder, words in (
        ("run", "images, on which the run was trained"),
        ("moved", "DATA is mis"),
    ):
        status, _, error = call("evaluate", folder)
        assert status == 2
        assert words in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("train cifar-10", "did you mean 'cifar10'?"),
        ("train CIFAR10", "did you mean 'cifar10'?"),
        ("train Shape", "did you mean 'shapes'?"),
        ("train shapes --set lr=0.1", "did you mean 'learning_rate'?"),
        ("train shapes --set batchsize=3", "did you mean 'batch_size'?"),
        ("train shapes --recipe moderm", "did you mean 'modern'?"),
        ("train shapes --architecture single-tower", "did you mean 'single_tower'?"),
        ("train shapes --on-bad-image skipp", "did you mean 'skip'?"),
        (
            "train shapes --set lr=1 --set bs=2",
            "['bs', 'lr']; expected fields of Recipe; did you mean 'batch_size' for 'bs', "
            "'learning_rate' for 'lr'?",
        ),
        ("train shapes --set mnist=1 --set bs=2", "']; did you mean 'batch_size' for 'bs'?"),
        *(
            (command.format(ADDRESS), f"is '{ADDRESS}', an address; expected a path: download it")
            for command in (
                "train {}",
                "train shapes --out {}",
                "train shapes --resume {}",
                "train shapes --recipe {}",
                "train shapes --recipe finetune --set weights={}",
                "doctor {}",
                "stats {}",
                "evaluate {}",
                "evaluate {} shapes",
                "evaluate run {}",
                "figures {}",
                "figures run {}",
                "predict photo.jpg --checkpoint {}",
                "download cifar10 --root {}",
            )
        ),
        ("train weights.pth", "is a file of weights; expected a folder of images"),
        ("train run", "is the folder of a run; expected the images"),
        ("evaluate shapes run", "CHECKPOINT is 'shapes' and DATA a run; expected the other order"),
        ("figures shapes run", "RUN is 'shapes' and DATA a run; expected the other order"),
        ("evaluate run shapes", "'run', a folder; expected a file; expected a .safetensors file"),
        ("summary papr", "did you mean 'paper'"),
        ("download cifar10 --root weights.pth/data", "it is a file, or lies in one"),
        ("train shapes --out weights.pth", "it is a file"),
        ("evaluate run shapes --views 3", "views is 3; expected"),
    ],
)
def test_what_was_meant_is_said(arguments, words, call, tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"PK")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text("{}", encoding="utf-8")
    status, _, error = call(*arguments.split())
    assert status == 2
    assert words in error
    assert "did you mean" in words or "did you mean" not in error


def test_a_name_that_is_near_no_other_gets_no_suggestion(call):
    assert "did you mean" not in call("train", "mnist")[2]
    assert "expected names among" in call("train", "shapes", "--set", "mnist=1")[2]


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
