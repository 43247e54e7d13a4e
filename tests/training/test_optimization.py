"""The promises of a recipe's optimiser and of its learning rate over a run."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import TINY
from torch import nn
from torch.optim import SGD

from alexnet_lib import AlexNet, build_optimizer, build_plateau, build_schedule
from alexnet_lib.training.recipes import RECIPES, Recipe


def learning_rates(recipe: Recipe, steps: int) -> list[float]:
    """The rate of each step, and that after the last."""
    optimizer = build_optimizer(recipe, nn.Linear(1, 1))
    schedule = build_schedule(recipe, optimizer, steps)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


# The rate of each step, and that after the last, for a learning rate of 1. The cosines are
# (1 + cos x) / 2 for eighths, thirds and quarters of a half turn, from a table.
EIGHTHS = [1.0, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060, 0.0]
RATES = {
    ("cosine", 0.2, 10): [0.5, *EIGHTHS[:1], *EIGHTHS],
    ("cosine", 0.0, 4): [1.0, 0.853553, 0.5, 0.146447, 0.0],
    ("cosine", 0.4, 5): [0.5, 1.0, 1.0, 0.75, 0.25, 0.0],
    ("cosine", 0.99, 4): [0.333333, 0.666667, 1.0, 1.0, 0.0],
    ("cosine", 0.5, 1): [1.0, 0.0],
    ("constant", 0.4, 10): [0.25, 0.5, 0.75, *[1.0] * 8],
    ("constant", 0.0, 3): [1.0, 1.0, 1.0, 1.0],
    ("constant", 0.99, 3): [0.5, 1.0, 1.0, 1.0],
    ("plateau", 0.4, 10): [0.25, 0.5, 0.75, *[1.0] * 8],
    ("plateau", 0.1, 10): [1.0] * 11,
    ("plateau", 0.0, 3): [1.0, 1.0, 1.0, 1.0],
    ("plateau", 0.99, 3): [0.5, 1.0, 1.0, 1.0],
}


@pytest.mark.parametrize(("schedule", "warmup", "steps"), RATES)
@pytest.mark.parametrize("peak", [1.0, 0.02])
def test_the_rate_of_each_step_is_the_one_computed_by_hand(schedule, warmup, steps, peak):
    recipe = Recipe("r", schedule=schedule, warmup_fraction=warmup, learning_rate=peak)
    expected = [peak * rate for rate in RATES[schedule, warmup, steps]]
    assert learning_rates(recipe, steps) == pytest.approx(expected, rel=1e-4, abs=1e-6 * peak)


@given(
    schedule=st.sampled_from(["cosine", "constant", "plateau"]),
    steps=st.integers(1, 200),
    fraction=st.floats(0, 0.99),
    peak=st.floats(1e-4, 10),
)
def test_the_rate_rises_evenly_to_its_peak_and_never_again(schedule, steps, fraction, peak):
    recipe = Recipe("r", schedule=schedule, warmup_fraction=fraction, learning_rate=peak)
    rates = learning_rates(recipe, steps)
    top = next(i for i, rate in enumerate(rates) if rate == pytest.approx(peak))
    rises = [after - before for before, after in pairwise(rates)]
    assert rises[:top] == pytest.approx([rates[0]] * top)
    assert all(rise <= 1e-9 * peak for rise in rises[top:])
    assert rates[-1] == pytest.approx(0.0 if schedule == "cosine" else peak, abs=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "constant", "plateau"])
def test_the_biases_rate_keeps_its_ratio_at_every_step(schedule):
    recipe = Recipe("r", schedule=schedule, warmup_fraction=0.4, bias_rate_factor=2.0)
    optimizer = build_optimizer(recipe, nn.Linear(1, 1))
    steps = build_schedule(recipe, optimizer, 10)
    for _ in range(10):
        weights, biases = optimizer.param_groups
        assert biases["lr"] == pytest.approx(2 * weights["lr"])
        optimizer.step()
        steps.step()


def plateau_rates(recipe: Recipe, errors: list[float]) -> list[list[float]]:
    """Each group's rate after each epoch of one step, given the epochs' validation errors."""
    optimizer = build_optimizer(recipe, nn.Linear(1, 1))
    schedule = build_schedule(recipe, optimizer, len(errors))
    plateau = build_plateau(recipe, optimizer)
    rates = []
    for error in errors:
        optimizer.step()
        schedule.step()
        plateau.step(error)
        rates.append([group["lr"] for group in optimizer.param_groups])
    return [list(group) for group in zip(*rates, strict=True)]


PLATEAU = Recipe("r", schedule="plateau", warmup_fraction=0.0, learning_rate=0.02)


@pytest.mark.parametrize("patience", [1, 2, 4])
def test_a_plateau_of_as_many_epochs_as_the_patience_divides_the_rate_by_ten(patience):
    recipe = replace(PLATEAU, plateau_patience=patience)
    rates, _ = plateau_rates(recipe, [0.5] + [0.5] * patience + [0.4, 0.4])
    assert rates[patience - 1 : patience + 2] == pytest.approx([0.02, 0.002, 0.002])


def test_while_the_error_improves_the_rate_stays():
    rates, _ = plateau_rates(replace(PLATEAU, plateau_patience=1), [0.5, 0.4999, 0.4998, 0.0])
    assert rates == pytest.approx([0.02] * 4)


def test_an_improvement_makes_the_patience_start_anew():
    recipe = replace(PLATEAU, plateau_patience=2)
    rates, _ = plateau_rates(recipe, [0.5, 0.6, 0.4, 0.4, 0.4])
    assert rates == pytest.approx([0.02] * 4 + [0.002])


def test_the_rate_is_divided_at_most_three_times():
    rates, _ = plateau_rates(replace(PLATEAU, plateau_patience=1), [0.5] * 9)
    assert rates == pytest.approx([0.02, 0.002, 0.0002] + [0.00002] * 6)


def test_plateaus_keep_the_ratio_of_the_biases_rate():
    recipe = replace(PLATEAU, plateau_patience=1, bias_rate_factor=3.0)
    _, biases = plateau_rates(recipe, [0.5] * 9)
    assert biases == pytest.approx([0.06, 0.006, 0.0006] + [0.00006] * 6)


def test_a_warm_up_that_goes_on_does_not_undo_a_plateaus_division():
    recipe = replace(PLATEAU, plateau_patience=1, warmup_fraction=0.5)
    # Eight steps, of which four are the warm-up; the plateau comes in the second.
    rates, _ = plateau_rates(recipe, [0.5, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.01])
    assert rates == pytest.approx([0.01, 0.0015] + [0.002] * 6)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_other_schedules_have_no_plateau(schedule):
    recipe = Recipe("r", schedule=schedule)
    assert build_plateau(recipe, build_optimizer(recipe, nn.Linear(1, 1))) is None


def groups_of(recipe: Recipe, model: nn.Module) -> list[dict]:
    return build_optimizer(recipe, model).param_groups


@pytest.mark.parametrize("place", [0, 1], ids=["weights", "biases"])
def test_the_optimizer_has_the_recipes_numbers(place):
    recipe = Recipe("r", learning_rate=0.5, momentum=0.8, weight_decay=0.01)
    optimizer = build_optimizer(recipe, nn.Linear(1, 1))
    group = optimizer.param_groups[place]
    assert type(optimizer) is SGD
    assert group["lr"] == 0.5
    assert group["momentum"] == 0.8
    assert group["weight_decay"] == 0.01
    assert group["nesterov"]


def test_nesterovs_momentum_is_left_out_where_the_recipe_says_so():
    assert not groups_of(Recipe("r", nesterov=False), nn.Linear(1, 1))[0]["nesterov"]


def test_biases_have_their_own_rate():
    model = AlexNet(2, architecture=TINY)
    recipe = Recipe("r", learning_rate=0.25, bias_rate_factor=2.0)
    weights, biases = groups_of(recipe, model)
    assert (weights["lr"], biases["lr"]) == (0.25, 0.5)
    layers = [model.features.conv1, model.classifier.fc2]
    assert [id(p) for p in weights["params"]] == [id(layer.weight) for layer in layers]
    assert [id(p) for p in biases["params"]] == [id(layer.bias) for layer in layers]


@pytest.mark.parametrize(("decays", "expected"), [(True, 0.01), (False, 0.0)])
@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_biases_decay_where_the_recipe_says_so(optimizer, decays, expected):
    recipe = Recipe("r", optimizer=optimizer, weight_decay=0.01, decay_biases=decays)
    weights, biases = groups_of(recipe, nn.Linear(1, 1))
    assert (weights["weight_decay"], biases["weight_decay"]) == (0.01, expected)


def test_frozen_weights_are_not_in_the_optimizer():
    model = AlexNet(2, architecture=TINY)
    model.freeze("conv1")
    found = [p for group in groups_of(Recipe("r"), model) for p in group["params"]]
    assert [id(p) for p in found] == [id(p) for p in model.classifier.fc2.parameters()]


@pytest.mark.bad_input
def test_a_model_with_nothing_to_train_is_refused():
    model = AlexNet(2, architecture=TINY)
    model.freeze("conv1", "fc2")
    with pytest.raises(ValueError, match=r"^all layers of the model are frozen"):
        build_optimizer(Recipe("r"), model)


def test_a_model_without_biases_has_one_group():
    (group,) = groups_of(Recipe("r"), nn.Linear(1, 1, bias=False))
    assert len(group["params"]) == 1


def test_momentum_0_is_plain_gradient_descent():
    layer = nn.Linear(1, 1)
    recipe = Recipe("r", learning_rate=0.5, momentum=0.0, weight_decay=0.0)
    optimizer = build_optimizer(recipe, layer)
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.ones(1, 1)
    optimizer.step()
    assert torch.equal(layer.weight, before - 0.5)


@given(
    gradients=st.lists(st.floats(-10, 10), min_size=1, max_size=8),
    start=st.floats(-2, 2),
    rate=st.floats(1e-4, 1),
)
def test_without_nesterov_the_update_is_the_papers(gradients, start, rate):
    layer = nn.Linear(1, 1, bias=False).double()
    optimizer = build_optimizer(replace(RECIPES["paper"], learning_rate=rate), layer)
    with torch.no_grad():
        layer.weight.fill_(start)
    w, v = start, 0.0
    for gradient in gradients:
        layer.weight.grad = torch.full((1, 1), gradient, dtype=torch.float64)
        optimizer.step()
        v = 0.9 * v - 0.0005 * rate * w - rate * gradient
        w = w + v
        assert layer.weight.item() == pytest.approx(w, rel=1e-9, abs=1e-9)
