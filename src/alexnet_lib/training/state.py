"""A run in progress: one object with everything that changes from step to step."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from alexnet_lib import interrupts
from alexnet_lib.data.loaders import Loaders
from alexnet_lib.devices import RunOptions, derived_seed, seed_generators
from alexnet_lib.network.model import AlexNet
from alexnet_lib.training.batches import Batch, moved_batches
from alexnet_lib.training.distributed import ALONE, Group
from alexnet_lib.training.loop import evaluate_together
from alexnet_lib.training.metrics import EpochRecord, EvalMetrics, Totals, nonfinite_weight
from alexnet_lib.training.optimization import balanced_weights, build_plateau, build_step
from alexnet_lib.training.parallel import Split
from alexnet_lib.training.recipes import Recipe


class TrainingRun:
    """A run in progress, from its first step to its last.

    The random numbers of a step are a function of (seed, epoch, step), so a run that is set to the
    state of another continues as that one would have, bit for bit.

    Args:
        recipe: the recipe of the run.
        loaders: as ``prepare_loaders`` returns them.
        model: as ``prepare_model`` returns it; its weights are trained.
        seed: for dropout.
        options: resolved options.
        group: the processes that compute the run together, each with the same arguments but its
            share of the batches. All of them have the same state.

    A step is one of the optimiser; with the recipe's ``accumulation_steps`` it reads several
    batches. An epoch in which images were skipped may have fewer steps than ``steps_in_epoch``.

    Attributes:
        epoch: number of finished epochs.
        totals: sums over the images of the epoch in progress; ``totals.steps`` are its steps.
        batches_read: batches of the epoch in progress that were read, also those that were left
            out because none of their images could be read.
        history: a record for each finished epoch.
        image_sizes: side of the images in each epoch, in pixels.
        result: the network that is evaluated and kept: the model, or the average of its weights.
        best_weights: the weights of the best validation accuracy (without a validation part, of
            the last epoch), or None.
    """

    def __init__(
        self,
        recipe: Recipe,
        loaders: Loaders,
        model: AlexNet,
        *,
        seed: int,
        options: RunOptions,
        group: Group = ALONE,
    ) -> None:
        self.recipe, self.loaders, self.model, self.seed = recipe, loaders, model, seed
        self.options, self.group = options, group
        group.same_weights(model)
        self.split = Split(model, options, group)
        self._network = self.split.network(model)
        self._step = build_step(
            recipe,
            self._network,
            options,
            steps=self.steps_in_all,
            class_weights=balanced_weights(
                recipe, loaders.train.dataset, torch.device(options.device)
            ),
            group=group,
            split=self.split.parameters,
        )
        self.split.join_filters(self._step.optimizer, self._network)
        self.scaler = self._step.scaler
        self._device = self._step.device
        self.optimizer, self.schedule = self._step.optimizer, self._step.batch_scheduler
        self.plateau = build_plateau(recipe, self.optimizer)
        self.average = None
        if recipe.ema_decay is not None:
            self.average = AveragedModel(model, self._device)
        self.result: AlexNet = model if self.average is None else self.average.module  # type: ignore[assignment]
        self._mean = self.split.network(self.result)
        self.image_sizes = recipe.image_sizes(loaders.image_size)
        self.epoch = 0
        self.history: list[EpochRecord] = []
        self.best_epoch = 0
        self.best_accuracy: float | None = None
        self.best_weights: dict[str, Tensor] | None = None
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.totals = Totals(self._device)
        self.batches_read = 0
        self._batches: Iterator[Batch] | None = None

    @property
    def steps_in_epoch(self) -> int:
        """Steps of a whole epoch."""
        return math.ceil(len(self.loaders.train) / self.recipe.accumulation_steps)

    @property
    def steps_in_all(self) -> int:
        """Steps of the whole run."""
        return self.recipe.epochs * self.steps_in_epoch

    @property
    def steps_done(self) -> int:
        """Steps taken so far, as if no epoch had left out any."""
        return self.epoch * self.steps_in_epoch + self.totals.steps

    @property
    def image_size(self) -> int:
        """Side of the images of the epoch in progress, in pixels."""
        return self.image_sizes[self.epoch]

    @property
    def epoch_read(self) -> bool:
        """Whether all batches of the epoch in progress were trained on."""
        return self.batches_read >= len(self.loaders.train)

    @property
    def finished(self) -> bool:
        """Whether all epochs are finished, or the validation accuracy has stopped rising."""
        return self.epoch >= self.recipe.epochs or self.stopped_early

    @property
    def stopped_early(self) -> bool:
        """Whether the recipe's ``early_stopping`` ended the run before its last epoch."""
        patience = self.recipe.early_stopping
        growing = sum(size < self.loaders.image_size for size in self.image_sizes)
        waited = self.epoch - max(self.best_epoch, growing)
        return patience is not None and self.epoch < self.recipe.epochs and waited >= patience

    def take_step(self) -> None:
        """Trains on the next batches of the epoch; on none where the rest were skipped."""
        step = self.totals.steps
        if not step:
            self.totals = Totals(self._device)  # its time starts with the first step of the epoch
        # Not step 0: its random numbers are those of the epoch's order. What is compiled draws for
        # its share alone, so that the numbers of each process must be others.
        own = [self.group.rank] if self.options.compile and not self.group.is_first else []
        seed_generators(derived_seed(self.seed, self.epoch, step + 1, *own), self._device)
        if self._batches is None:
            place = self.group.places(self.loaders.train)
            self._batches = moved_batches(self._read(), self._device, place)
            self._network.train()
        batches = itertools.islice(self._batches, self.recipe.accumulation_steps)
        # A step is taken as a whole.
        with interrupts.postponed(), self._network.at_image_size(self.image_size):
            taken = self._step.train_on(batches, self.totals)
        if self.average is not None and self.recipe.ema_decay is not None:
            _update(self.average, self._mean, self._network, self.recipe.ema_decay, taken)

    def _read(self) -> Iterator[tuple[Tensor, Tensor]]:
        loader = self.loaders.train
        preprocess = loader.preprocess.at_image_size(self.image_size)
        numbered = loader.numbered_batches(self.epoch, self.batches_read, preprocess)
        for number, batch in numbered:
            self.batches_read = number + 1
            yield batch
        self.batches_read = len(self.loaders.train)

    def finish_epoch(self) -> EpochRecord:
        """Evaluates on the validation images, after the last step of an epoch.

        A loss or a weight that is NaN or infinite is a ``FloatingPointError``.
        """
        metrics = self.totals.compute()
        self.gather_weights()
        # The loss of the last step was computed before that step changed the weights.
        if nonfinite_weight(self.model) is not None:
            raise FloatingPointError(
                "the last step made weights NaN or infinite: lower the learning rate, or clip "
                "with max_grad_norm"
            )
        rate, validation, accuracy = self.optimizer.param_groups[0]["lr"], None, None
        if self.loaders.validation is not None:
            validation = self.evaluate(self.result, "validation", image_size=self.image_size)
            accuracy = validation.accuracy
            assert accuracy is not None  # labels of the library's loaders are classes
            if self.plateau is not None:
                self.plateau.step(1 - accuracy)
        record = EpochRecord(self.epoch + 1, rate, metrics, validation, self.image_size)
        self.epoch += 1
        self.history.append(record)
        # Accuracies on images of several sizes are not compared.
        sizes = [line.image_size for line in self.history[-2:]]
        best = None if sizes[0] != sizes[-1] else self.best_accuracy
        if accuracy is None or best is None or accuracy > best:
            self.best_epoch, self.best_accuracy = self.epoch, accuracy
            self.best_weights = {
                name: tensor.detach().clone() for name, tensor in self.result.state_dict().items()
            }
        self._begin_epoch()
        return record

    def gather_weights(self) -> None:
        """Gives each process the weights that the others have trained, where layers are split.

        Until then, its ``model`` and ``result`` have only its own rows.
        """
        for model in {id(m): m for m in (self.model, self.result)}.values():
            self.split.gather(model)

    def evaluate(
        self,
        model: AlexNet,
        part: Literal["validation", "test"],
        *,
        views: int = 1,
        image_size: int | None = None,
    ) -> EvalMetrics:
        """Evaluates a network on a part of the data, also on images of another size."""
        loader = getattr(self.loaders, part)
        epoch, batches = loader.epoch, loader
        if image_size not in {None, self.loaders.image_size}:
            batches = loader.batches(epoch, 0, loader.preprocess.at_image_size(image_size))
        with model.at_image_size(image_size or model.image_size):
            metrics = evaluate_together(
                model,
                batches,
                self.group,
                self.group.places(loader),
                precision=self._step.precision,
                views=views,
                progress=self.options.progress,
            )
        # The same images each time, also if a given loader or its data set is random.
        loader.set_epoch(epoch)
        if not math.isfinite(metrics.loss):
            raise FloatingPointError(
                f"the loss on the {part} images is not finite (NaN or infinite): lower the "
                "learning rate, or clip with max_grad_norm"
            )
        return metrics

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The state, also within an epoch: plain data for JSON, and tensors by name.

        The tensors are the run's own, which its next step changes. Where layers are split, all
        processes are to call it; the state is whole in the first one.
        """
        self.gather_weights()
        tensors: dict[str, Tensor] = {}
        parts = {name: getattr(self, name) for name in _PARTS}
        state = {
            **{name: part and part.state_dict() for name, part in parts.items()},
            "optimizer": self.split.whole_state(self.optimizer, self._network),
            **{name: getattr(self, name) for name in _PLAIN},
            "batches_read": self.batches_read,
            "totals": self.totals.state(),
            "history": [asdict(record) for record in self.history],
            "loaders": [loader and loader.state() for loader in self.loaders],
        }
        return _pack(state, tensors), tensors

    def set_state(self, data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Continues from the state of a run of the same recipe, data, seed and options."""
        state = _unpack(data, tensors)
        state["optimizer"] = self.split.own_state(state["optimizer"], self.optimizer, self._network)
        for name in _PLAIN:
            setattr(self, name, state[name])
        for name in _PARTS:
            if (part := getattr(self, name)) is not None:
                part.load_state_dict(state[name])
        for parameter, buffers in self.optimizer.state.items():
            for name, tensor in buffers.items():
                if isinstance(tensor, Tensor) and tensor.shape == parameter.shape:
                    # Fused optimisers expect the memory format of the parameter.
                    buffers[name] = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
        self._begin_epoch()
        self.batches_read = state["batches_read"]
        self.totals.set_state(state["totals"])
        self.history = [EpochRecord.from_state(record) for record in state["history"]]
        for loader, stored in zip(self.loaders, state["loaders"], strict=True):
            if loader is not None:
                loader.set_state(stored)
        epochs = (0, min(self.epoch, 1), self.best_epoch, self.epoch, self.recipe.epochs)
        if [*epochs] != sorted(epochs) or len(self.history) != self.epoch:
            raise ValueError(f"epoch is {self.epoch}, the best one {self.best_epoch}")
        if not 0 <= self.batches_read <= len(self.loaders.train):
            raise ValueError(f"batches_read is {self.batches_read}")


@torch.no_grad()
def _update(
    average: AveragedModel, mean_model: AlexNet, model: AlexNet, decay: float, taken: Tensor
) -> None:
    """Moves the average towards the weights of a model, or keeps it if the step was not taken.

    ``mean_model`` is that of the average, or its rows of this process. torch's
    ``update_parameters`` waits for the device, as does a look at ``taken``. As there, the first
    update copies the weights.
    """
    share = torch.where(average.n_averaged == 0, 1.0, 1 - decay) * taken
    for mean, weight in zip(mean_model.parameters(), model.parameters(), strict=True):
        mean.lerp_(weight, share.to(mean.dtype))
    for buffer, latest in zip(mean_model.buffers(), model.buffers(), strict=True):
        buffer.copy_(latest)
    average.n_averaged += taken


# The attributes of a run that make up its state, besides totals and history.
_PARTS = ("model", "optimizer", "schedule", "plateau", "average", "scaler")
_PLAIN = ("epoch", "best_epoch", "best_accuracy", "best_weights")

# Keys in plain data that mark a tensor, a number that JSON does not have, and a dictionary whose
# keys are not strings.
_TENSOR, _NUMBER, _ITEMS = "$tensor", "$number", "$items"


def _pack(value: Any, tensors: dict[str, Tensor], name: str = "") -> Any:
    """A value as plain data; its tensors are put into ``tensors``, by their path in it."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, Tensor):
        tensors[name] = value.detach()
        return {_TENSOR: name}
    if isinstance(value, float) and not math.isfinite(value):
        return {_NUMBER: str(value)}
    if isinstance(value, Mapping):
        packed = {key: _pack(item, tensors, f"{name}/{key}") for key, item in value.items()}
        strings = all(isinstance(key, str) for key in packed)
        return packed if strings else {_ITEMS: [*packed.items()]}
    if isinstance(value, list | tuple):
        return [_pack(item, tensors, f"{name}/{i}") for i, item in enumerate(value)]
    return value


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, Mapping):
        if _TENSOR in value:
            return tensors[value[_TENSOR]].clone()
        if _NUMBER in value:
            return float(value[_NUMBER])
        items = value[_ITEMS] if _ITEMS in value else value.items()
        return {key: _unpack(item, tensors) for key, item in items}
    return [_unpack(item, tensors) for item in value] if isinstance(value, list | tuple) else value
