"""The promise of the substitutes: a model computes the same, and is left as it is."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from alexnet_lib.kernels import linear as substitutes
from alexnet_lib.kernels.linear import substituted

CPU = torch.device("cpu")

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN"
)


@pytest.fixture
def products(monkeypatch):
    """The products that go to oneDNN, on a processor where they do; every size counts as large."""
    calls = []
    real = substitutes._product
    monkeypatch.setattr(substitutes, "_mkl_is_slow", lambda: True)
    monkeypatch.setattr(substitutes, "_LARGE_WEIGHT", 1)
    monkeypatch.setattr(substitutes, "_product", lambda *a: calls.append(a) or real(*a))
    return calls


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [1, 7])
def test_outputs_and_gradients_are_those_of_the_layer(products, bias, batch):
    layer = nn.Linear(20, 12, bias=bias)
    x = random(batch, 20).requires_grad_()
    weights = random(batch, 12, seed=1)
    wanted = (x, *layer.parameters())
    expected = layer(x)
    with substituted(CPU):
        actual = layer(x)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, wanted, weights), torch.autograd.grad(expected, wanted, weights)
    )
    assert len(products) == 3


def test_a_call_without_a_bias_learns(products):
    x, weight = random(7, 20), random(12, 20, seed=1).requires_grad_()
    with substituted(CPU):
        F.linear(x, weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand(12, 20))
    assert len(products) == 2


def test_an_input_without_a_gradient_costs_no_product_for_it(products):
    layer = nn.Linear(20, 12)
    with substituted(CPU):
        layer(random(7, 20)).sum().backward()
    assert len(products) == 2


def test_a_second_derivative_is_that_of_the_layer(products):
    layer, x = nn.Linear(5, 3), random(2, 5).requires_grad_()

    def second(y):
        (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), layer.weight)

    with substituted(CPU):
        y = layer(x)
    torch.testing.assert_close(second(y), second(layer(x)))


def test_outside_the_context_nothing_is_replaced(products):
    with substituted(CPU):
        pass
    nn.Linear(20, 12)(random(7, 20))
    assert not products


@pytest.mark.parametrize(
    "call",
    [
        lambda: F.linear(random(7, 20, dtype=torch.float64), random(12, 20, dtype=torch.float64)),
        lambda: F.linear(random(2, 7, 20), random(12, 20)),
        lambda: F.linear(random(0, 20), random(12, 20)),
        lambda: F.linear(random(7, 20).bfloat16(), random(12, 20).bfloat16()),
        lambda: torch.func.vmap(F.linear, (0, None))(random(3, 7, 20), random(12, 20)),
        lambda: torch.func.grad(lambda x: F.linear(x, random(12, 20)).sum())(random(7, 20)),
    ],
    ids=["float64", "three dimensions", "an empty batch", "bfloat16", "vmap", "func.grad"],
)
def test_what_does_not_fit_is_left_to_torch(products, call):
    expected = call()
    with substituted(CPU):
        actual = call()
    torch.testing.assert_close(actual, expected)
    assert not products


def test_autocast_is_left_to_torch(products):
    layer = nn.Linear(20, 12)
    with torch.autocast("cpu", torch.bfloat16), substituted(CPU):
        assert layer(random(7, 20)).dtype == torch.bfloat16
    assert not products


def test_small_layers_and_other_processors_are_left_to_torch(products, monkeypatch):
    monkeypatch.setattr(substitutes, "_LARGE_WEIGHT", 20 * 12 + 1)
    with substituted(CPU):
        nn.Linear(20, 12)(random(7, 20))
    monkeypatch.setattr(substitutes, "_LARGE_WEIGHT", 1)
    monkeypatch.setattr(substitutes, "_mkl_is_slow", lambda: False)
    with substituted(CPU):
        nn.Linear(20, 12)(random(7, 20))
    assert not products
