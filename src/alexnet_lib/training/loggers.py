"""What a run tells its loggers: the recipe, the loss of some steps, and the metrics of epochs."""

import os
import warnings
from collections.abc import Iterable, Mapping
from copy import copy, deepcopy
from typing import Any, Protocol, runtime_checkable

from alexnet_lib.checks import type_name
from alexnet_lib.files import as_path
from alexnet_lib.training.metrics import EpochRecord, EvalMetrics, Totals
from alexnet_lib.training.state import TrainingRun

# Steps from one loss to the next: reading it waits for the device.
STEPS_BETWEEN_LOSSES = 50


@runtime_checkable
class Logger(Protocol):
    """A logger of ``fit``: an object with three methods, which are those of Lightning's loggers.

    A step is one of the optimiser, counted from 1 over the whole run. The metrics are named

    - ``step/loss`` and ``step/learning_rate``, every 50 steps of an epoch: the mean loss of the
      images since the last time, and the rate that comes next;
    - ``epoch``, ``learning_rate``, ``image_size``, ``train/loss``, ``train/accuracy``,
      ``train/images_per_second``, ``validation/loss`` and ``validation/accuracy`` after each epoch,
      as in ``history.jsonl``;
    - ``test/loss`` and ``test/accuracy`` at the end.
    """

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        """Called once, before the first step, also of a resumed run.

        Args:
            params: ``data``, ``seed``, ``device``, ``precision`` and the fields of the recipe:
                strings, numbers, booleans, None and lists of strings.
        """
        ...

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Called with each group of metrics; ``step`` is the number of steps taken so far."""
        ...

    def finalize(self, status: str) -> None:
        """Called once at the end: ``"success"``, or ``"failed"`` after an error or a signal."""
        ...


class TensorBoardLogger:
    """Writes metrics and hyper-parameters as TensorBoard shows them.

    It needs the package ``tensorboard``. Where a resumed run is written to the same folder, steps
    that it takes again are shown once.

    Args:
        folder: where the event files of this run are written, created with the first metrics. It
            may be the folder of the run.

    Raises:
        ModuleNotFoundError: TensorBoard is not installed.

    Example:
        >>> from alexnet_lib import TensorBoardLogger, fit
        >>> fit("shapes", out="runs/a", loggers=[TensorBoardLogger("runs/a")])  # doctest: +SKIP
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "TensorBoardLogger needs TensorBoard, which is not installed: pip install "
                "tensorboard",
                name=error.name,
            ) from error
        self.folder = as_path(folder, "folder")
        self._writer_class: Any = SummaryWriter
        self._writer: Any = None
        self._params: dict[str, Any] = {}

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        """Keeps them for the first metrics."""
        plain = (str, int, float)
        self._params = {k: v if isinstance(v, plain) else str(v) for k, v in params.items()}

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Writes the metrics; the first ones hide what the folder has of this step and later."""
        if self._writer is None:
            from torch.utils.tensorboard.summary import hparams

            self._writer = self._writer_class(str(self.folder), purge_step=step)
            # Not add_hparams, which begins another run in a folder of its own.
            for summary in hparams(self._params, {"validation/accuracy": 0, "test/accuracy": 0}):
                self._writer.file_writer.add_summary(summary)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finalize(self, status: str) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class RunLog:
    """Calls the loggers of a run.

    Before the first step, an error of a logger is the run's. Later it is a warning, and that logger
    is called no more: a disk or a server that fails must not end hours of training. As a context,
    it finalizes the loggers.
    """

    def __init__(self, loggers: Iterable[Logger]) -> None:
        if isinstance(loggers, str | Mapping) or not isinstance(loggers, Iterable):
            raise TypeError(f"loggers is a {type_name(loggers)}; expected a list of loggers")
        self._loggers = [*loggers]
        for i, logger in enumerate(self._loggers):
            if not isinstance(logger, Logger) or isinstance(logger, type):
                raise TypeError(
                    f"loggers[{i}] is a {type_name(logger)}; expected an object with the methods "
                    "log_hyperparams, log_metrics and finalize"
                )
        self._begun: list[Logger] = []
        self._since: tuple[Totals | None, int, float] = None, 0, 0.0

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        self._call("finalize", "success" if kind is None else "failed")

    def begin(self, run: TrainingRun, params: dict[str, Any]) -> None:
        """Tells the hyper-parameters."""
        for logger in self._loggers:
            self._begun.append(logger)
            logger.log_hyperparams(deepcopy(params))
        if self._loggers:
            self._since = _sums(run.totals)

    def step(self, run: TrainingRun) -> None:
        """Tells the loss since the last time, every so many steps; it waits for the device then."""
        if not self._begun or run.totals.steps % STEPS_BETWEEN_LOSSES:
            return
        totals, images, loss = now = _sums(run.totals)
        former, former_images, former_loss = self._since
        if former is totals:  # else another epoch has begun
            images, loss = images - former_images, loss - former_loss
        self._since = now
        if images:  # else all steps were skipped
            rate = run.optimizer.param_groups[0]["lr"]
            metrics = {"step/loss": loss / images, "step/learning_rate": rate}
            self._call("log_metrics", metrics, run.steps_done)

    def epoch(self, run: TrainingRun, record: EpochRecord) -> None:
        """Tells the metrics of an epoch."""
        self._call("log_metrics", _flat(record.to_dict()), run.steps_done)

    def test(self, run: TrainingRun, metrics: EvalMetrics) -> None:
        """Tells the metrics of the test."""
        test = {"loss": metrics.loss, "accuracy": metrics.accuracy}
        self._call("log_metrics", _flat({"test": test}), run.steps_done)

    def _call(self, method: str, *arguments: Any) -> None:
        for logger in [*self._begun]:
            try:
                getattr(logger, method)(*map(copy, arguments))
            except Exception as error:
                self._begun.remove(logger)
                warnings.warn(
                    f"{type_name(logger)} failed in {method} and is called no more: {error!r}",
                    stacklevel=3,
                )


def _sums(totals: Totals) -> tuple[Totals, int, float]:
    """The images of an epoch so far and the sum of their losses."""
    return totals, totals.images - int(totals.skipped_images), float(totals.loss)


def _flat(data: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of nested data, for example ``{"train/loss": 2.3}``."""
    flat: dict[str, float] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{inner}": number for inner, number in _flat(value).items()}
        elif value is not None:
            flat[name] = float(value)
    return flat
