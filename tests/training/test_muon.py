import copy
from dataclasses import replace

import pytest
import torch
from helpers import tolerance
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD

from alexnet_lib import RECIPES, AlexNet, Recipe, build_optimizer
from alexnet_lib.training import muon
from alexnet_lib.training.muon import Muon, orthogonalised

RECIPE = Recipe("r", optimizer="muon", learning_rate=0.1, filter_rate_factor=0.2)


@pytest.fixture(params=[True, False], ids=["bfloat16", "float32"])
def in_bfloat16(request, monkeypatch):
    monkeypatch.setattr(muon, "multiplies_bfloat16", lambda device: request.param)
    return request.param


CPU = torch.device("cpu")


def random(*shape: int, seed: int = 0, device: torch.device = CPU) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def with_singular_values(values: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    left, _ = torch.linalg.qr(random(rows, len(values), seed=1))
    right, _ = torch.linalg.qr(random(columns, len(values), seed=2))
    return left * values @ right.T


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    smallest=st.floats(0.05, 1),
    scale=st.floats(1e-6, 1e6),
)
def test_the_singular_values_become_about_one_and_the_directions_stay(
    device, in_bfloat16, size, smallest, scale
):
    values = torch.linspace(smallest, 1, min(size)) * scale
    matrix = with_singular_values(values, *size)
    result = orthogonalised(matrix[None].to(device))[0].cpu()
    found = torch.linalg.svdvals(result)
    assert found.min() > 0.6
    assert found.max() < 1.3
    # What is symmetric here is U f(S) U^T: the right singular vectors are those of the matrix.
    product = result @ matrix.T / matrix.norm()
    # The iterations multiply the rounding of bfloat16.
    atol = tolerance(device, 0.02, 0.05 if in_bfloat16 else 0.02)
    torch.testing.assert_close(product, product.T, rtol=0, atol=atol)


def test_each_matrix_of_a_batch_is_orthogonalised_alone(device, in_bfloat16):
    scales = torch.tensor([1e-3, 1.0, 1e3], device=device)
    matrices = random(3, 8, 12, device=device) * scales[:, None, None]
    alone = torch.cat([orthogonalised(matrix[None]) for matrix in matrices])
    torch.testing.assert_close(orthogonalised(matrices), alone, rtol=0, atol=0.01)


def test_zeros_stay_zeros(device, in_bfloat16):
    assert not orthogonalised(torch.zeros(2, 3, 4, device=device)).any()


@pytest.mark.parametrize("shape", [(24, 12), (12, 24)], ids=["tall", "wide"])
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("decay", [0.0, 20.0])
def test_the_steps_are_those_of_torchs_muon_for_matrices(
    device, shape, nesterov, decay, monkeypatch
):
    monkeypatch.setattr(muon, "multiplies_bfloat16", lambda device: True)  # as torch's
    layer = nn.Conv2d(shape[1], shape[0], 1, bias=False).to(device)
    matrix = nn.Parameter(torch.empty(shape, device=device))
    with torch.no_grad():
        matrix.copy_(start := layer.weight.detach().flatten(1).clone())
    settings = {"momentum": 0.8, "nesterov": nesterov}
    ours = build_optimizer(replace(RECIPE, filter_decay=decay, **settings), layer)
    torchs = torch.optim.Muon([matrix], lr=0.02, weight_decay=decay, **settings)
    for step in range(4):
        gradient = random(*shape, seed=step, device=device)
        layer.weight.grad, matrix.grad = gradient[:, :, None, None].clone(), gradient.clone()
        ours.step()
        torchs.step()
    moved, difference = matrix - start, layer.weight.flatten(1) - matrix
    assert difference.norm() < 0.05 * moved.norm()  # the iterations multiply bfloat16's rounding


def test_the_groups_of_a_convolution_are_orthogonalised_apart(device, in_bfloat16):
    both = nn.Conv2d(8, 12, 3, groups=2, bias=False).to(device)
    halves = [nn.Conv2d(4, 6, 3, bias=False).to(device) for _ in range(2)]
    scales = torch.tensor([1.0] * 6 + [100.0] * 6, device=device)
    gradient = random(12, 4, 3, 3, device=device) * scales[:, None, None, None]
    with torch.no_grad():
        both.weight.zero_()
    both.weight.grad = gradient.clone()
    build_optimizer(RECIPE, both).step()
    for half, weight, part in zip(halves, both.weight.split(6), gradient.split(6), strict=True):
        with torch.no_grad():
            half.weight.zero_()
        half.weight.grad = part.clone()
        build_optimizer(RECIPE, half).step()
        torch.testing.assert_close(weight, half.weight, rtol=0, atol=0.02 / 64)
        assert torch.linalg.svdvals(weight.detach().flatten(1).cpu()).min() > 0.6 * 0.02


def test_only_filters_are_orthogonalised_and_the_rest_is_sgd(device):
    model = AlexNet(10, image_size=67, seed=0).to(device)
    plain = copy.deepcopy(model)
    optimizer = build_optimizer(RECIPE, model)
    reference = build_optimizer(replace(RECIPE, optimizer="sgd"), plain)
    assert (type(optimizer), type(reference)) == (Muon, SGD)
    filters = {f"features.conv{i}.weight" for i in range(1, 6)}
    for _ in range(2):
        for (name, p), other in zip(model.named_parameters(), plain.parameters(), strict=True):
            p.grad, other.grad = (random(*p.shape, seed=len(name)).to(p.device) for _ in range(2))
        optimizer.step()
        reference.step()
    parameters = zip(model.named_parameters(), plain.parameters(), strict=True)
    assert {name for (name, p), other in parameters if not torch.equal(p, other)} == filters


def test_filters_have_their_own_rate_and_decay_and_the_groups_of_their_layer():
    recipe = replace(RECIPE, filter_decay=0.3)
    groups = build_optimizer(recipe, AlexNet(10, image_size=67)).param_groups
    assert [group["lr"] for group in groups] == [0.1, 0.1, *[0.2 * 0.1] * 5]
    assert [group.get("filter_groups") for group in groups] == [None, None, 1, 2, 1, 2, 2]
    assert [group["weight_decay"] for group in groups] == [0.0005, 0.0005, *[0.3] * 5]


def test_frozen_filters_are_left_out():
    model = AlexNet(10, image_size=67)
    model.freeze("conv1")
    assert len(build_optimizer(RECIPE, model).param_groups) == 2 + 4


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_step_that_is_found_not_finite_changes_nothing(device, momentum):
    layer = nn.Conv2d(3, 4, 3).to(device)
    optimizer = build_optimizer(replace(RECIPE, momentum=momentum), layer)
    layer.weight.grad, layer.bias.grad = torch.ones_like(layer.weight), torch.ones_like(layer.bias)
    optimizer.step()
    before = copy.deepcopy((layer.state_dict(), optimizer.state_dict()["state"]))
    layer.weight.grad = torch.full_like(layer.weight, torch.nan)
    layer.bias.grad = torch.ones_like(layer.bias)
    optimizer.grad_scale, optimizer.found_inf = (
        None,
        torch.ones((), device=device),
    )  # as GradScaler does it
    optimizer.step()
    after = layer.state_dict(), optimizer.state_dict()["state"]
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_a_closure_is_called_with_gradients(device):
    layer = nn.Conv2d(1, 2, 3, bias=False).to(device)
    optimizer = build_optimizer(RECIPE, layer)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = layer(torch.ones(1, 1, 3, 3, device=device)).sum()
        loss.backward()
        return loss

    before = layer.weight.detach().clone()
    assert optimizer.step(closure).item() == pytest.approx(before.sum().item(), abs=1e-5)
    assert (layer.weight < before).all()


def test_a_copy_goes_on_from_the_state(device):
    first, second = (nn.Conv2d(3, 4, 3).to(device) for _ in range(2))
    one = build_optimizer(RECIPE, first)
    for p in first.parameters():
        p.grad = random(*p.shape, device=device)
    one.step()
    second.load_state_dict(first.state_dict())
    two = build_optimizer(RECIPE, second)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    for layer, optimizer in ((first, one), (second, two)):
        for p in layer.parameters():
            p.grad = random(*p.shape, seed=1, device=device)
        optimizer.step()
    torch.testing.assert_close(second.state_dict(), first.state_dict(), rtol=0, atol=0)


def test_the_recipes_of_the_literature_do_not_use_it():
    assert {name for name, recipe in RECIPES.items() if recipe.optimizer == "muon"} <= {
        "modern",
        "finetune",
    }
