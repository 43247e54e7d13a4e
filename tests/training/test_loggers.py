"""The promises to loggers: what they are told and when, and that no run depends on them."""

import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_fit import interrupt, quick_fit
from tiny import QUIET, tiny_recipe, weights_of

from alexnet_lib import TensorBoardLogger, prepare_loaders
from alexnet_lib.training import loggers as loggers_module
from alexnet_lib.training.fit import fit
from alexnet_lib.training.state import TrainingRun
from alexnet_lib.training.step import TrainingStep

needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed"
)


class Recorder:
    """A logger that keeps what it is told; it fails in a method, from its n-th call on."""

    def __init__(self, failing: str = "", *, after: int = 0) -> None:
        self.calls: list[tuple] = []
        self._failing, self._left = failing, after

    def _note(self, method, *arguments):
        self.calls.append((method, *arguments))
        if method == self._failing:
            self._left -= 1
            if self._left < 0:
                raise OSError(28, "No space left on device")

    def log_hyperparams(self, params):
        self._note("log_hyperparams", params)

    def log_metrics(self, metrics, step):
        self._note("log_metrics", metrics, step)

    def finalize(self, status):
        self._note("finalize", status)

    @property
    def methods(self) -> list[str]:
        return [call[0] for call in self.calls]

    def metrics(self, name: str) -> dict[int, float]:
        """Its values by step."""
        told = [call[1:] for call in self.calls if call[0] == "log_metrics"]
        return {step: metrics[name] for metrics, step in told if name in metrics}


@pytest.fixture
def every_two_steps(monkeypatch):
    """Of the four of an epoch."""
    monkeypatch.setattr(loggers_module, "STEPS_BETWEEN_LOSSES", 2)


def interrupted_fit(monkeypatch, *, after: int, **arguments) -> None:
    """A run that a signal ends after so many steps."""
    with monkeypatch.context() as patch:
        interrupt(patch, after=after)
        with pytest.raises(KeyboardInterrupt):
            quick_fit(**arguments)


# What is told


def test_a_logger_is_told_the_recipe_the_metrics_of_epochs_and_test_and_the_end():
    logger = Recorder()
    run = quick_fit(loggers=iter([logger]), seed=3)
    assert logger.methods == ["log_hyperparams", *["log_metrics"] * 3, "finalize"]
    params = logger.calls[0][1]
    recipe = tiny_recipe(epochs=2).to_dict()
    options = {"data": "shapes", "seed": 3, "device": "cpu", "precision": "float32"}
    assert params == {**options, **recipe}
    json.dumps(params, allow_nan=False)
    for record, (_, metrics, step) in zip(run.history, logger.calls[1:3], strict=True):
        assert step == 4 * record.epoch
        assert metrics == {
            "epoch": record.epoch,
            "learning_rate": record.learning_rate,
            "image_size": 12,
            "train/loss": record.train.loss,
            "train/accuracy": record.train.accuracy,
            "train/images_per_second": record.train.images_per_second,
            "validation/loss": record.validation.loss,
            "validation/accuracy": record.validation.accuracy,
        }
    test = {"test/loss": run.test.loss, "test/accuracy": run.test.accuracy}
    assert logger.calls[3:] == [("log_metrics", test, 8), ("finalize", "success")]


def test_parts_that_a_run_does_not_have_are_not_told():
    logger = Recorder()
    loaders = prepare_loaders("shapes", tiny_recipe(), options=QUIET)
    quick_fit(loaders._replace(validation=None, test=None), loggers=[logger], epochs=1)
    (metrics,) = [call[1] for call in logger.calls if call[0] == "log_metrics"]
    assert not any(name.startswith(("validation", "test")) for name in metrics)


def with_losses(monkeypatch) -> list[tuple[int, float]]:
    """Fills with the number of images and the sum of the losses of each step."""
    seen, real = [], TrainingStep.train_on

    def train_on(step, batches, totals):
        images, loss = totals.images, float(totals.loss)
        taken = real(step, batches, totals)
        seen.append((totals.images - images, float(totals.loss) - loss))
        return taken

    monkeypatch.setattr(TrainingStep, "train_on", train_on)
    return seen


def mean(steps: list[tuple[int, float]]) -> float:
    images, losses = map(sum, zip(*steps, strict=True))
    return losses / images


def test_the_loss_of_steps_is_the_mean_over_the_images_since_the_last_time(
    every_two_steps, monkeypatch
):
    steps, logger = with_losses(monkeypatch), Recorder()
    quick_fit(loggers=[logger])
    assert [images for images, _ in steps] == [16, 16, 16, 6] * 2
    assert logger.metrics("step/loss") == {
        n: pytest.approx(mean(steps[n - 2 : n])) for n in (2, 4, 6, 8)
    }
    assert [*logger.metrics("step/learning_rate")] == [2, 4, 6, 8]


def test_images_of_skipped_steps_count_in_no_loss(every_two_steps, monkeypatch):
    real, steps = TrainingStep._loss, iter(range(8))

    def loss(step, batch):
        value, *others = real(step, batch)
        return (value * (math.nan if next(steps) in {0, 2, 3} else 1), *others)

    monkeypatch.setattr(TrainingStep, "_loss", loss)
    seen, logger = with_losses(monkeypatch), Recorder()
    quick_fit(loggers=[logger], epochs=1, options=replace(QUIET, on_nonfinite="skip"))
    assert logger.metrics("step/loss") == {2: pytest.approx(seen[1][1] / 16)}


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resumed_run_tells_the_losses_of_its_own_steps(
    stop, every_two_steps, monkeypatch, tmp_path
):
    steps = with_losses(monkeypatch)
    interrupted_fit(monkeypatch, after=stop, out=tmp_path)
    logger = Recorder()
    quick_fit(resume=tmp_path, loggers=[logger])
    losses = logger.metrics("step/loss")
    first = stop + 1
    assert [*losses] == [n for n in (2, 4, 6, 8) if n >= first]
    assert losses[first] == pytest.approx(mean(steps[stop:first]))
    assert losses[8] == pytest.approx(mean(steps[6:8]))
    assert logger.methods[0] == "log_hyperparams"


# No run depends on its loggers


class Meddling(Recorder):
    """A logger that does to what it can reach what it must not."""

    def _note(self, method, *arguments):
        super()._note(method, *arguments)
        torch.manual_seed(7)
        torch.rand(5)
        for argument in arguments:
            if isinstance(argument, dict):
                argument.clear()


def test_the_weights_are_the_same_with_and_without_loggers(every_two_steps):
    other = Recorder()
    overrides = {"dropout": 0.5, "flip": True}
    with_loggers = quick_fit(overrides=overrides, loggers=[Meddling(), other])
    without = quick_fit(overrides=overrides)
    assert torch.equal(weights_of(with_loggers.model), weights_of(without.model))
    assert with_loggers.test.loss == without.test.loss
    assert other.calls[0][1]["data"] == "shapes"
    assert len(other.metrics("train/loss")) == 2


def test_a_logger_that_fails_before_the_first_step_ends_the_run(monkeypatch):
    steps = with_losses(monkeypatch)
    first, second, third = Recorder(), Recorder("log_hyperparams"), Recorder()
    with pytest.raises(OSError, match="No space left"):
        quick_fit(loggers=[first, second, third])
    assert steps == []
    for logger in (first, second):
        assert logger.calls[1:] == [("finalize", "failed")]
    assert third.calls == []


@pytest.mark.parametrize(
    ("method", "after", "calls"), [("log_metrics", 0, 2), ("log_metrics", 2, 4), ("finalize", 0, 5)]
)
def test_a_logger_that_fails_later_is_a_warning_and_is_called_no_more(
    method, after, calls, tmp_path
):
    failing, other = Recorder(method, after=after), Recorder()
    with pytest.warns(UserWarning, match=f"Recorder failed in {method} and is .*No space") as seen:
        run = quick_fit(loggers=[failing, other], out=tmp_path)
    assert len(seen) == 1
    assert len(failing.calls) == calls
    assert len(other.calls) == 5
    assert len(run.history) == 2
    assert (tmp_path / "result.json").exists()


def test_the_loggers_of_a_run_that_is_interrupted_are_finalized_after_its_state_is_written(
    monkeypatch, tmp_path
):
    written = []

    class Last(Recorder):
        def finalize(self, status):
            written.append((tmp_path / "state.safetensors").exists())
            super().finalize(status)

    logger = Last()
    interrupt(monkeypatch, after=6)
    with pytest.raises(KeyboardInterrupt):
        quick_fit(out=tmp_path, loggers=[logger])
    assert logger.methods == ["log_hyperparams", "log_metrics", "finalize"]
    assert (logger.calls[-1][1], written) == ("failed", [True])


def test_the_loggers_of_a_run_that_fails_are_finalized(monkeypatch):
    def take_step(run):
        raise FloatingPointError("the loss of step 1 is not finite")

    monkeypatch.setattr(TrainingRun, "take_step", take_step)
    logger = Recorder()
    with pytest.raises(FloatingPointError):
        quick_fit(loggers=[logger])
    assert logger.calls[1:] == [("finalize", "failed")]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("loggers", "message"),
    [
        (Recorder(), r"loggers is a test_loggers\.Recorder; expected a list of loggers"),
        (None, "loggers is a NoneType; expected a list of loggers"),
        ("tensorboard", "loggers is a str; expected a list of loggers"),
        ([Recorder(), "tensorboard"], r"loggers\[1\] is a str; expected an object with the meth"),
        ([Recorder], r"loggers\[0\] is a type; expected an object with the methods log_hyperpar"),
    ],
)
def test_loggers_of_another_kind_are_refused(loggers, message):
    with pytest.raises(TypeError, match=message):
        fit("shapes", loggers=loggers)


# TensorBoard


def events_of(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()


def scalars_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The steps and values of each curve."""
    events = events_of(folder)
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


@needs_tensorboard
def test_tensorboard_shows_the_metrics(every_two_steps, tmp_path):
    logger = Recorder()
    quick_fit(loggers=[TensorBoardLogger(tmp_path / "a" / "b"), logger])
    scalars = scalars_of(tmp_path / "a" / "b")
    told = {name for call in logger.calls if call[0] == "log_metrics" for name in call[1]}
    assert set(scalars) == told
    for name, curve in scalars.items():
        expected = logger.metrics(name)
        assert [step for step, _ in curve] == [*expected]
        assert [value for _, value in curve] == pytest.approx([*expected.values()])


@needs_tensorboard
def test_tensorboard_shows_the_hyper_parameters(tmp_path):
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    quick_fit(loggers=[TensorBoardLogger(tmp_path)], epochs=1, overrides={"freeze": ("conv1",)})
    metadata = events_of(tmp_path).summary_metadata
    content = metadata["_hparams_/session_start_info"].plugin_data.content
    shown = HParamsPluginData.FromString(content).session_start_info.hparams
    assert shown["learning_rate"].number_value == pytest.approx(0.1)
    assert shown["architecture"].string_value == "tiny"
    assert shown["flip"].bool_value in {True, False}
    assert shown["freeze"].string_value == "['conv1']"
    assert set(tiny_recipe().to_dict()) < set(shown)
    experiment = metadata["_hparams_/experiment"].plugin_data.content
    infos = HParamsPluginData.FromString(experiment).experiment.metric_infos
    assert [info.name.tag for info in infos] == ["validation/accuracy", "test/accuracy"]


@needs_tensorboard
def test_tensorboard_shows_no_step_of_a_resumed_run_twice(every_two_steps, monkeypatch, tmp_path):
    whole = Recorder()
    quick_fit(loggers=[whole])
    out = tmp_path / "run"
    # The state is that after three steps; what is shown goes on to the sixth, as after a kill.
    interrupted_fit(monkeypatch, after=3, out=out, loggers=[TensorBoardLogger(out)])
    state = (out / "state.safetensors").read_bytes()
    interrupted_fit(monkeypatch, after=4, resume=out, loggers=[TensorBoardLogger(out)])
    (out / "state.safetensors").write_bytes(state)
    assert [step for step, _ in scalars_of(out)["step/loss"]] == [2, 4, 6]
    quick_fit(resume=out, loggers=[TensorBoardLogger(out)])
    scalars = scalars_of(out)
    for name, curve in scalars.items():
        assert [step for step, _ in curve] == [*whole.metrics(name)], name
    assert len(list(out.glob("events.*"))) == 3


@needs_tensorboard
def test_a_logger_of_tensorboard_serves_another_run(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    for _ in range(2):
        quick_fit(loggers=[logger], epochs=1)
    assert [step for step, _ in scalars_of(tmp_path)["train/loss"]] == [4]


def test_without_tensorboard_it_is_said_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match="not installed: pip install tensorboard"):
        TensorBoardLogger(tmp_path)
