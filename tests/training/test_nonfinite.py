"""A step whose loss or gradient is NaN or infinite changes nothing, and is named."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers import repeated
from torch import Tensor, nn

from alexnet_lib import RunOptions
from alexnet_lib.training import loop
from alexnet_lib.training import step as step_module
from alexnet_lib.training.batches import labelled
from alexnet_lib.training.loop import evaluate, train_one_epoch
from alexnet_lib.training.metrics import NONFINITE_LIMIT, Totals
from alexnet_lib.training.optimization import build_step
from alexnet_lib.training.recipes import Recipe
from alexnet_lib.training.step import TrainingStep

CPU = torch.device("cpu")
NAN = float("nan")


@pytest.fixture(params=["read at once", "on the device"])
def where(request, monkeypatch) -> str:
    """As on the CPU, and as on a device whose numbers are read only now and then."""
    if request.param == "on the device":
        monkeypatch.setattr(step_module, "_is_read", lambda device: False)
    return request.param


def network(device: torch.device = CPU) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3)
    return nn.Sequential(nn.Flatten(), *layers).to(device)


def batches_of(count: int, device: torch.device = CPU) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(4, 3, 2, 2, generator=generator) for _ in range(count)]
    return [(batch.to(device), torch.arange(4, device=device) % 3) for batch in images]


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "fused sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01),
    "fused adamw": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01),
}


class Poison:
    """A cross entropy that is spoiled in some of its steps, from 1."""

    def __init__(self, steps: set[int], kind: str) -> None:
        self.steps, self.kind, self.step = steps, kind, 0

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        self.step += 1
        loss = F.cross_entropy(logits, labels)
        if self.step not in self.steps:
            return loss
        if self.kind == "gradient":
            logits.register_hook(lambda gradient: gradient * NAN)
            return loss
        return loss * float(self.kind)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
@pytest.mark.parametrize("kind", ["nan", "inf", "gradient"])
def test_a_skipped_step_changes_nothing(device, optimizer, max_grad_norm, kind, where):
    batches, bad = batches_of(6), {1, 3, 4}
    model, plain = network(device), network(device)
    optimizers = [OPTIMIZERS[optimizer](m.parameters()) for m in (model, plain)]
    options = {"max_grad_norm": max_grad_norm, "progress": False}
    with pytest.warns(UserWarning, match="^3 of 6 steps were skipped, .*: first step 1, the "):
        metrics = train_one_epoch(
            model,
            batches,
            optimizers[0],
            criterion=Poison(bad, kind),
            on_nonfinite="skip",
            **options,
        )
    good = [batch for number, batch in enumerate(batches, 1) if number not in bad]
    expected = train_one_epoch(plain, good, optimizers[1], **options)
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), **repeated(device))
    states = [[*o.state_dict()["state"].values()] for o in optimizers]
    torch.testing.assert_close(*states, **repeated(device))
    assert (metrics.loss, metrics.accuracy) == (expected.loss, expected.accuracy)
    assert (metrics.images, metrics.skipped_steps) == (12, 3)


@pytest.mark.parametrize("kind", ["nan", "gradient"])
def test_a_step_that_stops_the_run_leaves_the_weights_of_the_step_before(device, kind):
    model, plain = network(device), network(device)
    # On a GPU the epoch ends with the error, after the steps that follow the one left out.
    batches = batches_of(6 if device.type == "cpu" else 3)
    with pytest.raises(FloatingPointError, match=r"(of|in) step 3 is not finite"):
        train_one_epoch(
            model,
            batches,
            OPTIMIZERS["sgd"](model.parameters()),
            criterion=Poison({3}, kind),
            progress=False,
        )
    train_one_epoch(plain, batches_of(2), OPTIMIZERS["sgd"](plain.parameters()), progress=False)
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), **repeated(device))


def test_the_layer_where_the_backward_pass_failed_is_named(device, where):
    model = network(device)
    # The backward pass comes to 5, which is finite, then to 3, and hands its NaN on to 1.
    model[3].register_forward_hook(
        lambda module, arguments, output: output.register_hook(lambda g: g * NAN) and None
    )
    with pytest.raises(FloatingPointError, match=r"^the gradient of 3\.bias in step 1 is not"):
        train_one_epoch(
            model, batches_of(2), OPTIMIZERS["fused sgd"](model.parameters()), progress=False
        )


def test_weights_that_were_spoiled_before_are_named(device, where):
    model = network(device)
    nn.init.constant_(model[3].weight[0], NAN)
    with pytest.raises(FloatingPointError, match=r"loss of step 1 .* the weight 3\.weight is NaN"):
        train_one_epoch(
            model, batches_of(2), OPTIMIZERS["fused sgd"](model.parameters()), progress=False
        )


@pytest.mark.parametrize(("bad", "raises"), [(NONFINITE_LIMIT, False), (NONFINITE_LIMIT + 1, True)])
def test_at_most_ten_steps_of_an_epoch_are_skipped(device, bad, raises, where):
    model = network(device)
    run = lambda: train_one_epoch(
        model,
        batches_of(bad + 2),
        OPTIMIZERS["fused sgd"](model.parameters()),
        criterion=Poison({*range(2, bad + 2)}, "nan"),
        on_nonfinite="skip",
        progress=False,
    )
    if raises:
        with pytest.raises(FloatingPointError, match=r"^11 steps .*at most 10 .*loss of step 2 "):
            run()
    else:
        with pytest.warns(UserWarning, match="^10 of 12 steps were skipped"):
            assert run().skipped_steps == 10


def test_a_first_step_that_is_skipped_can_be_shown(device, monkeypatch):
    monkeypatch.setattr(loop, "_REFRESH_SECONDS", -1.0)
    model = network(device)
    with pytest.warns(UserWarning, match="^1 of 2 steps"):
        train_one_epoch(
            model,
            batches_of(2),
            OPTIMIZERS["sgd"](model.parameters()),
            criterion=Poison({1}, "nan"),
            on_nonfinite="skip",
        )


def test_one_batch_spoils_the_whole_step_that_it_is_accumulated_in(device, where):
    batches, good = batches_of(6), batches_of(6)
    batches[3][0][0] = NAN
    del good[2:4]
    model, plain = network(device), network(device)
    build = OPTIMIZERS["fused sgd"]
    options = {"accumulation_steps": 2, "progress": False}
    with pytest.warns(UserWarning, match="^1 of 3 steps were skipped, .*: first step 2, the loss"):
        metrics = train_one_epoch(
            model, batches, build(model.parameters()), on_nonfinite="skip", **options
        )
    expected = train_one_epoch(plain, good, build(plain.parameters()), **options)
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), **repeated(device))
    assert (metrics.loss, metrics.images) == (expected.loss, 16)


def test_a_skipped_step_advances_the_schedule_without_a_warning(device, where):
    model = network(device)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    step = TrainingStep(
        model,
        optimizer,
        device,
        criterion=Poison({1}, "nan"),
        batch_scheduler=schedule,
        on_nonfinite="skip",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in batches_of(2):
            step(*batch, Totals(device))
    assert optimizer.param_groups[0]["lr"] == 0.1 * 0.5**2


def test_whether_a_step_was_taken_is_said(device, where):
    model = network(device)
    step = TrainingStep(
        model,
        OPTIMIZERS["fused sgd"](model.parameters()),
        device,
        criterion=Poison({2}, "gradient"),
        on_nonfinite="skip",
    )
    totals = Totals(device)
    assert [bool(step(*batch, totals)) for batch in batches_of(3)] == [True, False, True]
    assert not step.train_on([], totals)


@pytest.mark.parametrize("max_grad_norm", [0.01, 0.5, 100.0])
def test_clipping_is_that_of_torch_to_the_bit(device, max_grad_norm, where):
    model, plain = network(device), network(device)
    model[1].weight.requires_grad_(False)
    plain[1].weight.requires_grad_(False)
    build = OPTIMIZERS["sgd"]
    train_one_epoch(
        model,
        batches_of(3),
        build(model.parameters()),
        max_grad_norm=max_grad_norm,
        progress=False,
    )
    optimizer = build(plain.parameters())
    for images, labels in batches_of(3, device):
        optimizer.zero_grad()
        F.cross_entropy(plain(images), labels).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), max_grad_norm)
        optimizer.step()
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), **repeated(device))


def test_large_finite_gradients_are_no_fault_where_nothing_is_clipped(device, where):
    # The sum of their squares is infinite in float32.
    model, plain = network(device), network(device)
    large = lambda logits, labels: F.cross_entropy(logits, labels) * 1e25
    for each in (model, plain):
        optimizer = torch.optim.SGD(each.parameters(), 1e-26, fused=True)
        if each is model:
            train_one_epoch(each, batches_of(1), optimizer, criterion=large, progress=False)
        else:
            large(each(batches_of(1, device)[0][0]), batches_of(1, device)[0][1]).backward()
            optimizer.step()
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), **repeated(device))


def test_a_norm_that_overflows_is_named_instead_of_clipped_to_nothing(device, where):
    model = network(device)
    with pytest.raises(FloatingPointError, match=r"^the gradient of 5\.bias in step 1"):
        train_one_epoch(
            model,
            batches_of(1),
            OPTIMIZERS["fused sgd"](model.parameters()),
            criterion=lambda logits, labels: F.cross_entropy(logits, labels) * 1e25,
            max_grad_norm=1.0,
            progress=False,
        )


class Words(nn.Module):
    """Sparse gradients, and a layer that gets none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.unused = nn.Linear(2, 2)
        self.table = nn.Embedding(5, 3, sparse=True)

    def forward(self, words: Tensor) -> Tensor:
        return self.table(words).sum(1)


@pytest.mark.parametrize("max_grad_norm", [None, 0.1])
def test_sparse_gradients_and_parameters_without_any_are_right(device, max_grad_norm, where):
    words = [(torch.tensor([[1, 1], [2, 3]]), torch.tensor([0, 2])) for _ in range(3)]
    model, plain = Words().to(device), Words().to(device)
    with pytest.warns(UserWarning, match="first step 2, the gradient of table.weight"):
        train_one_epoch(
            model,
            words,
            torch.optim.SGD(model.parameters(), 0.1),
            criterion=Poison({2}, "gradient"),
            max_grad_norm=max_grad_norm,
            on_nonfinite="skip",
            progress=False,
        )
    optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    for inputs, labels in words[1:]:
        optimizer.zero_grad()
        F.cross_entropy(plain(inputs.to(device)), labels.to(device)).backward()
        if max_grad_norm is not None:
            plain.table.weight.grad = plain.table.weight.grad.coalesce()
            nn.utils.clip_grad_norm_(plain.parameters(), max_grad_norm)
        optimizer.step()
    torch.testing.assert_close(model.state_dict(), plain.state_dict())


def test_a_parameter_of_the_criterion_is_looked_at_too(device, where):
    model, scale = network(device), nn.Parameter(torch.ones((), device=device))
    optimizer = torch.optim.SGD([*model.parameters(), scale], 0.1, fused=True)
    scale.register_hook(lambda gradient: gradient * NAN)
    criterion = lambda logits, labels: F.cross_entropy(logits, labels) * scale
    message = "^the gradient of parameter 0 outside of model in step 1 is not finite"
    with pytest.raises(FloatingPointError, match=message):
        train_one_epoch(model, batches_of(2), optimizer, criterion=criterion, progress=False)
    assert scale == 1


def test_running_statistics_are_those_before_a_skipped_step(device, where):
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 3)).to(device)
    plain = copy.deepcopy(model)
    batches = batches_of(3)
    batches[1][0][0, 0] = NAN
    build = OPTIMIZERS["fused sgd"]
    with pytest.warns(UserWarning, match="^1 of 3 steps"):
        train_one_epoch(
            model, batches, build(model.parameters()), on_nonfinite="skip", progress=False
        )
    train_one_epoch(plain, batches[::2], build(plain.parameters()), progress=False)
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), **repeated(device))


# Waiting


def test_on_mps_and_with_optimizers_that_are_not_fused_each_step_is_waited_for():
    model = network()
    fused, plain = (OPTIMIZERS[name](model.parameters()) for name in ("fused sgd", "sgd"))
    assert step_module._skips(fused, torch.device("cuda"))
    assert not step_module._skips(fused, torch.device("mps"))  # whose kernels ignore found_inf
    assert not step_module._skips(plain, torch.device("cuda"))


# float16


def take(step: TrainingStep, count: int) -> None:
    totals = Totals(step.device)
    for batch in batches_of(count):
        step(*batch, totals)
        totals.check()


def test_in_float16_a_loss_that_is_not_finite_is_named(device, where):
    model = network(device)
    step = TrainingStep(
        model, OPTIMIZERS["fused sgd"](model.parameters()), device, "float16", Poison({1}, "nan")
    )
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(FloatingPointError, match="the loss of step 1 is not finite"):
        take(step, 1)
    torch.testing.assert_close(model.state_dict(), before, **repeated(device))
    step(*batches_of(1)[0], Totals(device))  # the scaler is ready for the next


def test_in_float16_gradients_that_overflow_at_every_scale_are_named(device, where):
    model, always = network(device), Poison({*range(99)}, "gradient")
    optimizer = OPTIMIZERS["fused sgd"](model.parameters())
    step = TrainingStep(model, optimizer, device, "float16", always)
    # The scale is halved from 65536 to 1 without an error.
    with pytest.raises(FloatingPointError, match=r"^the gradient of 5\.bias in step 17 is not"):
        take(step, 20)


# What is refused


@pytest.mark.bad_input
def test_an_optimizer_that_needs_a_closure_is_refused_in_words():
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters())
    with pytest.raises(
        TypeError, match=r"^optimizer is a torch.*LBFGS, whose step needs a closure"
    ):
        train_one_epoch(model, batches_of(1), optimizer, progress=False)


@pytest.mark.bad_input
@pytest.mark.parametrize("norm", [0, -1, 0.0, NAN, float("inf"), "1", True])
def test_a_norm_that_gradients_cannot_be_clipped_to_is_refused_at_every_door(device, norm):
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    message = "^max_grad_norm is .*; expected a (finite )?number above 0"
    with pytest.raises(ValueError, match=message):
        train_one_epoch(model, batches_of(1), optimizer, max_grad_norm=norm, progress=False)
    with pytest.raises(ValueError, match=message):
        TrainingStep(model, optimizer, device, max_grad_norm=norm)
    with pytest.raises(ValueError, match=message):
        Recipe("r", max_grad_norm=norm)


@pytest.mark.bad_input
@pytest.mark.parametrize("choice", ["ignore", None, True, ["stop"]])
def test_another_choice_than_stop_and_skip_is_refused(choice):
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    message = "^on_nonfinite is .*; expected "
    with pytest.raises(ValueError, match=message):
        train_one_epoch(model, batches_of(1), optimizer, on_nonfinite=choice, progress=False)
    with pytest.raises(ValueError, match=message):
        RunOptions(on_nonfinite=choice)


def test_the_step_of_a_run_has_the_choice_of_its_options(device):
    options = RunOptions(str(device), "float32", on_nonfinite="skip").resolved()
    step = build_step(Recipe("r"), network(device), options)
    assert step.on_nonfinite == "skip"
    assert step.train_on([labelled(*batches_of(1)[0], device)], Totals(device))


@pytest.mark.bad_input
def test_weights_that_are_huge_are_the_reason_for_outputs_that_are_not_finite(device):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 2)).to(device)
    for parameter in model.parameters():
        parameter.data.fill_(3e38)
    loader = [(torch.ones(2, 1, 2, 2), torch.tensor([0, 1]))]
    with pytest.raises(FloatingPointError, match=r"weights are as large as 3\.0e\+38"):
        evaluate(model, loader, progress=False)
