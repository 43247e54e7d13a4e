"""The promises of `LocalResponseNorm`, against torch's own layer and the paper's formula."""

import copy
import math
import sys

import numpy as np
import pytest
import torch
from helpers import TOLERANCE, needs
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from alexnet_lib import LocalResponseNorm
from alexnet_lib.checks import type_name
from alexnet_lib.network import normalization

# Every promise holds with the compiled kernels and where they cannot be had.
pytestmark = pytest.mark.usefixtures("implementation")

sizes = st.integers(1, 9)
constants = st.fixed_dictionaries(
    {"alpha": st.floats(1e-5, 2), "beta": st.floats(0, 2), "k": st.floats(0.5, 3)}
)
wide_dtypes = st.sampled_from([torch.float32, torch.float64])
short_dtypes = st.sampled_from([torch.bfloat16, torch.float16])
seeds = st.integers(0, 2**32)


@st.composite
def shapes(draw, *, channels=None):
    """(batch, channels, ...) of 3, 4 or 5 dimensions."""
    rest = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    return (draw(st.integers(1, 3)), channels or draw(st.integers(1, 12)), *rest)


@pytest.fixture(autouse=True)
def _kernel_of_a_gpu(implementation, monkeypatch):
    """The compiled kernel of a GPU is Triton's, here for tensors of any size."""
    worth = 0 if implementation == "compiled" else math.inf
    monkeypatch.setattr(normalization, "_WORTH_TRITON", worth)


def random_tensor(shape, dtype, seed, device="cpu"):
    needs(dtype, torch.device(device))
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype).to(device)


def on_cpu(compute, x, *others):
    """What a module or function gives for these tensors on the CPU, moved back."""
    return compute(x.cpu(), *(other.cpu() for other in others)).to(x.device)


def gradient_of(norm):
    """The gradient of an input, given the output's."""

    def gradient(x, weights):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(norm(x), x, weights)[0]

    return gradient


def assert_equal_up_to_rounding(actual, expected):
    tolerance = TOLERANCE[expected.dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@given(sizes, constants, shapes(), wide_dtypes, seeds)
def test_the_values_are_those_of_torchs_layer(device, size, constants, shape, dtype, seed):
    x = random_tensor(shape, dtype, seed, device=device)
    expected = on_cpu(nn.LocalResponseNorm(size, **constants), x)
    assert_equal_up_to_rounding(LocalResponseNorm(size, **constants)(x), expected)


@given(sizes, constants, shapes(), wide_dtypes, seeds)
def test_the_gradients_are_those_of_torchs_layer(device, size, constants, shape, dtype, seed):
    x = random_tensor(shape, dtype, seed, device=device).requires_grad_()
    weights = random_tensor(shape, dtype, seed + 1, device=device)
    expected = on_cpu(gradient_of(nn.LocalResponseNorm(size, **constants)), x, weights)
    (actual,) = torch.autograd.grad(LocalResponseNorm(size, **constants)(x), x, weights)
    tolerance = 10 * TOLERANCE[dtype] * (1 + expected.abs().max().item())
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("size", [4, 5])
@pytest.mark.parametrize("groups", [1, 2])
def test_first_and_second_derivatives_pass_the_numerical_check(device, size, groups):
    x = random_tensor((2, 6, 2, 1), torch.float64, seed=0, device=device).requires_grad_()
    norm = LocalResponseNorm(size, alpha=0.5, groups=groups)
    assert torch.autograd.gradcheck(norm, x)
    assert torch.autograd.gradgradcheck(norm, x)


@given(sizes, constants, st.integers(1, 4), st.integers(1, 6), st.data())
def test_groups_are_torchs_layer_on_each_group_by_itself(
    device, size, constants, groups, width, data
):
    shape = data.draw(shapes(channels=groups * width))
    x = random_tensor(shape, torch.float64, data.draw(seeds), device=device)
    theirs = nn.LocalResponseNorm(size, **constants)
    expected = torch.cat([on_cpu(theirs, group) for group in x.chunk(groups, 1)], 1)
    assert_equal_up_to_rounding(LocalResponseNorm(size, groups=groups, **constants)(x), expected)


def assert_is_rounded(implementation, actual, wide):
    """A result in a short dtype against the one in float32."""
    if implementation == "compiled" and (actual.dtype == torch.float16 or wide.is_cuda):
        # The kernels of the CPU do not take float16, and Triton may contract the operations of each
        # dtype in another way: the two may lie on either side of the middle between two neighbours.
        tolerance = TOLERANCE[torch.float32] * (1 + wide.abs().max().item())
        half_a_step = torch.finfo(actual.dtype).eps / 2
        torch.testing.assert_close(actual.float(), wide, rtol=half_a_step, atol=tolerance)
    else:
        assert torch.equal(actual, wide.to(actual.dtype))


@given(sizes, constants, shapes(), short_dtypes, seeds)
def test_a_short_dtype_gives_the_float32_result_rounded(
    device, implementation, size, constants, shape, dtype, seed
):
    x = random_tensor(shape, dtype, seed, device=device)
    norm = LocalResponseNorm(size, **constants)
    actual = norm(x)
    assert actual.dtype == dtype
    assert_is_rounded(implementation, actual, norm(x.float()))


def test_squares_that_float16_cannot_hold_do_no_harm(device):
    # Its square is 15 times the largest.
    x = torch.full((1, 5, 1), 1000.0, dtype=torch.float16, device=device)
    assert torch.equal(LocalResponseNorm()(x), LocalResponseNorm()(x.float()).half())


@given(sizes, constants, shapes(), short_dtypes, seeds)
def test_a_short_dtypes_gradient_is_the_float32_gradient_rounded(
    device, implementation, size, constants, shape, dtype, seed
):
    x = random_tensor(shape, dtype, seed, device=device).requires_grad_()
    weights = random_tensor(shape, dtype, seed + 1, device=device)
    norm = LocalResponseNorm(size, **constants)
    (actual,) = torch.autograd.grad(norm(x), x, weights)
    wide = x.detach().float().requires_grad_()
    (expected,) = torch.autograd.grad(norm(wide), wide, weights.float())
    assert actual.dtype == dtype
    assert_is_rounded(implementation, actual, expected)


@given(sizes, constants, st.integers(1, 3), seeds)
def test_channels_last_changes_no_value(device, size, constants, groups, seed):
    x = random_tensor((2, 6, 3, 4), torch.float32, seed, device=device)
    norm = LocalResponseNorm(size, groups=groups, **constants)
    assert_equal_up_to_rounding(norm(x.contiguous(memory_format=torch.channels_last)), norm(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_output_and_gradient_come_in_the_inputs_memory_format(device, dtype, memory_format):
    x = random_tensor((2, 6, 3, 4), dtype, seed=0, device=device).contiguous(
        memory_format=memory_format
    )
    x.requires_grad_()
    y = LocalResponseNorm()(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert y.is_contiguous(memory_format=memory_format)
    assert gradient.is_contiguous(memory_format=memory_format)


@given(sizes, seeds)
def test_a_view_that_is_not_contiguous_is_read_right(device, size, seed):
    x = random_tensor((3, 4, 8, 5), torch.float32, seed, device=device).transpose(1, 2)[
        :, ::2, :, 1:
    ]
    norm = LocalResponseNorm(size, alpha=0.5)
    assert_equal_up_to_rounding(norm(x), norm(x.contiguous()))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_sizes_of_many_blocks_are_computed_to_the_last_value(device, memory_format):
    # More pixels than the widest block, and a width that no vector divides.
    x = random_tensor((3, 10, 37, 53), torch.float32, seed=0, device=device)
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    weights = random_tensor(x.shape, torch.float32, seed=1, device=device)
    theirs, ours = nn.LocalResponseNorm(5, alpha=0.5), LocalResponseNorm(5, alpha=0.5, k=1.0)
    assert_equal_up_to_rounding(ours(x), on_cpu(theirs, x))
    expected = on_cpu(gradient_of(theirs), x, weights)
    (actual,) = torch.autograd.grad(ours(x), x, weights)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("beta", [0.75, 0.6])
def test_what_is_not_finite_goes_through_as_torch_has_it(device, dtype, beta):
    x = torch.ones(1, 9, 2, device=device)
    x[0, 0, 0], x[0, 4, 0], x[0, 8, 0] = math.inf, 1e30, math.nan
    expected = on_cpu(nn.LocalResponseNorm(3, alpha=0.1, beta=beta), x)
    actual = LocalResponseNorm(3, alpha=0.1, beta=beta, k=1.0)(x.to(dtype))
    torch.testing.assert_close(actual, expected.to(dtype), equal_nan=True, rtol=1e-2, atol=0)
    assert actual.isnan().sum() == expected.isnan().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_nothing_but_the_input_is_kept_for_the_backward_pass(device, dtype):
    x = random_tensor((2, 6, 3, 4), dtype, seed=0, device=device).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        LocalResponseNorm()(x)
    assert [tensor.data_ptr() for tensor in kept] == [x.data_ptr()]


def test_the_number_of_threads_changes_no_bit():
    x = random_tensor((8, 12, 30, 30), torch.float32, seed=0).requires_grad_()
    weights = random_tensor(x.shape, torch.float32, seed=1)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = LocalResponseNorm(groups=2)(x)
            results.append((y, *torch.autograd.grad(y, x, weights)))
    finally:
        torch.set_num_threads(before)
    for y, gradient in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.equal(gradient, results[0][1])


def test_a_view_with_its_sign_turned_is_read_right(device):
    x = random_tensor((2, 6, 4), torch.float32, seed=0, device=device)
    turned = torch._neg_view(x)
    assert_equal_up_to_rounding(LocalResponseNorm()(turned), LocalResponseNorm()(-x))


def test_the_input_is_left_as_it_was(device):
    x = random_tensor((2, 6, 3, 4), torch.float32, seed=0, device=device)
    before = x.clone()
    LocalResponseNorm(groups=2)(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("shape", [(0, 6, 5, 5), (2, 6, 0, 5), (0, 6, 4)])
def test_an_empty_batch_passes(device, shape):
    x = torch.zeros(shape, requires_grad=True, device=device)
    y = LocalResponseNorm(groups=2)(x)
    y.sum().backward()
    assert y.shape == shape
    assert x.grad.shape == shape


def normalized_by_the_papers_formula(x, *, size, alpha, beta, k):
    """Section 3.3 written out, alpha not divided by the window's size."""
    channels = x.shape[1]
    maps = []
    for i in range(channels):
        window = range(max(0, i - size // 2), min(channels - 1, i + size // 2) + 1)
        energy = sum(x[:, j] ** 2 for j in window)
        maps.append(x[:, i] / (k + alpha * energy) ** beta)
    return torch.stack(maps, 1)


def normalized(x, size, groups=1, alpha=1e-4, beta=0.75, k=2.0):
    """The definition, with the sum over the window as a product with a band of ones."""
    wide = x.detach().cpu().double()
    channels = torch.arange(x.shape[1])
    apart = channels - channels[:, None]
    band = (apart >= -(size // 2)) & (apart <= (size - 1) // 2)
    width = max(1, x.shape[1] // groups)
    band &= channels // width == channels[:, None] // width
    sums = torch.einsum("ij,bj...->bi...", band.double(), wide**2)
    return (wide / (k + alpha / size * sums) ** beta).to(x)


@given(
    st.integers(1, 80),
    st.integers(1, 3),
    st.sampled_from([-3, -2, -1, 0, 1, 2, 10**7, 2**31 - 1000]),
    st.sampled_from([torch.float32, torch.float64]),
    seeds,
)
def test_a_window_may_be_as_wide_as_the_channels_and_wider(
    device, width, groups, more, dtype, seed
):
    size, alpha = max(1, 2 * width + more), 2.0
    x = random_tensor((2, groups * width, 2, 3), dtype, seed, device=device).requires_grad_()
    weights = random_tensor(x.shape, dtype, seed + 1, device=device)
    y = LocalResponseNorm(size, alpha, groups=groups)(x)
    assert_equal_up_to_rounding(y, normalized(x, size, groups, alpha))
    (gradient,) = torch.autograd.grad(y, x, weights)
    exact = x.detach().cpu().double().requires_grad_()
    theirs = LocalResponseNorm(min(size, 2 * width - 1), alpha * min(1, (2 * width - 1) / size))
    parts = torch.cat([theirs(part) for part in exact.chunk(groups, 1)], 1)
    (expected,) = torch.autograd.grad(parts, exact, weights.cpu().double())
    assert_equal_up_to_rounding(gradient, expected.to(gradient))


@pytest.mark.parametrize("size", [62, 63, 64, 65, 66, 127, 1000])
def test_wide_windows_are_the_definitions_by_whatever_code(device, size):
    x = random_tensor((1, 600, 3, 1), torch.float32, 0, device=device)
    assert_equal_up_to_rounding(LocalResponseNorm(size, 0.5)(x), normalized(x, size, 1, 0.5))


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.75, 1.0, 2.0])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_denominator_of_zero_gives_what_torchs_layer_gives(device, alpha, beta, dtype):
    x = random_tensor((2, 6, 4), torch.float32, 0, device=device).to(dtype)
    x[0] = 0
    x[1, :, 0] = 0
    exact = x.cpu().float().requires_grad_()
    x.requires_grad_()
    expected = nn.LocalResponseNorm(3, alpha, beta, k=0.0)(exact)
    actual = LocalResponseNorm(3, alpha, beta, k=0.0)(x)
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype != torch.bfloat16 else {"rtol": 0.1, "atol": 0.1}
    torch.testing.assert_close(actual, expected.to(actual), equal_nan=True, **close)
    assert bool(beta) == actual[0].isnan().all()
    gradients = [torch.autograd.grad(y.sum(), of)[0] for y, of in ((actual, x), (expected, exact))]
    torch.testing.assert_close(gradients[0], gradients[1].to(actual), equal_nan=True, **close)


@given(seeds)
def test_alpha_times_the_size_is_the_papers_formula(device, seed):
    x = 50 * random_tensor((2, 9, 3, 3), torch.float64, seed, device=device)
    expected = normalized_by_the_papers_formula(x, size=5, alpha=1e-4, beta=0.75, k=2)
    assert_equal_up_to_rounding(LocalResponseNorm(size=5, alpha=5e-4)(x), expected)


@given(seeds)
def test_the_default_is_the_released_codes_alpha_divided_by_the_size(device, seed):
    x = 50 * random_tensor((2, 9, 3, 3), torch.float64, seed, device=device)
    expected = normalized_by_the_papers_formula(x, size=5, alpha=1e-4 / 5, beta=0.75, k=2)
    assert_equal_up_to_rounding(LocalResponseNorm()(x), expected)


def test_a_batch_of_gradients_is_computed_as_one_by_one(device):
    x = random_tensor((2, 6, 4), torch.float32, seed=0, device=device).requires_grad_()
    weights = random_tensor((3, 2, 6, 4), torch.float32, seed=1, device=device)
    y = LocalResponseNorm(alpha=0.5)(x)
    one_by_one = [torch.autograd.grad(y, x, part, retain_graph=True)[0] for part in weights]
    (together,) = torch.autograd.grad(y, x, weights, is_grads_batched=True)
    assert_equal_up_to_rounding(together, torch.stack(one_by_one))


def test_vmap_maps_over_a_further_dimension(device):
    x = random_tensor((3, 2, 6, 4, 4), torch.float64, seed=0, device=device)
    norm = LocalResponseNorm(groups=2)
    expected = torch.stack([norm(part) for part in x])
    assert_equal_up_to_rounding(torch.func.vmap(norm)(x), expected)


def test_func_grad_gives_autograds_gradient(device):
    x = random_tensor((2, 6, 4, 4), torch.float64, seed=0, device=device)
    norm = LocalResponseNorm(alpha=0.5, groups=2)
    leaf = x.clone().requires_grad_()
    norm(leaf).sum().backward()
    assert_equal_up_to_rounding(torch.func.grad(lambda x: norm(x).sum())(x), leaf.grad)


def test_per_image_gradients_come_from_vmap_over_grad(device):
    images = random_tensor((3, 6, 4, 4), torch.float64, seed=0, device=device)
    norm = LocalResponseNorm(alpha=0.5)
    gradient = torch.func.grad(lambda image: norm(image[None]).sum())
    expected = torch.stack([gradient(image) for image in images])
    assert_equal_up_to_rounding(torch.func.vmap(gradient)(images), expected)


# torch's own rules for forward mode are scripts.
@pytest.mark.filterwarnings("ignore:`torch.jit.script`:FutureWarning")
@pytest.mark.parametrize("size", [4, 5])
def test_a_forward_mode_derivative_is_that_of_torchs_layer(device, size):
    x, direction = (random_tensor((2, 6, 4), torch.float64, seed, device=device) for seed in (0, 1))
    theirs = nn.LocalResponseNorm(size, alpha=0.5)
    expected = torch.func.jvp(theirs, (x,), (direction,))[1]
    ours = LocalResponseNorm(size, alpha=0.5, k=1.0)
    with forward_ad.dual_level():
        actual = forward_ad.unpack_dual(ours(forward_ad.make_dual(x, direction))).tangent
    assert_equal_up_to_rounding(actual, expected)
    assert_equal_up_to_rounding(torch.func.jvp(ours, (x,), (direction,))[1], expected)


def test_an_exported_program_holds_torchs_operations_only(device):
    x = random_tensor((2, 6, 4, 4), torch.float32, seed=0, device=device)
    program = torch.export.export(LocalResponseNorm(groups=2), (x,))
    targets = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    assert targets
    assert all(target.startswith("aten.") for target in targets)
    assert_equal_up_to_rounding(program.module()(x), LocalResponseNorm(groups=2)(x))


def test_a_graph_made_from_operations_computes_anew_for_other_inputs(device):
    x, other = (random_tensor((2, 6, 4), torch.float32, seed, device=device) for seed in (0, 1))
    graph = make_fx(LocalResponseNorm())(x)
    assert_equal_up_to_rounding(graph(other), LocalResponseNorm()(other))


def test_a_triton_that_does_not_run_is_one_warning_and_no_kernel(monkeypatch):
    normalization._gpu_kernels.cache_clear()
    monkeypatch.setitem(sys.modules, "alexnet_lib.kernels.gpu", None)
    with pytest.warns(RuntimeWarning, match="Triton does not run here") as caught:
        modules = [normalization._gpu_kernels(torch.device("cpu")) for _ in range(2)]
    assert modules == [None, None]
    assert len(caught) == 1
    normalization._gpu_kernels.cache_clear()


def test_it_has_no_state_and_prints_its_arguments():
    norm = LocalResponseNorm(3, alpha=0.5, groups=2)
    assert not norm.state_dict()
    assert repr(norm) == "LocalResponseNorm(3, alpha=0.5, beta=0.75, k=2.0, groups=2)"
    assert repr(copy.deepcopy(LocalResponseNorm())) == (
        "LocalResponseNorm(5, alpha=0.0001, beta=0.75, k=2.0)"
    )


@pytest.mark.bad_input
@pytest.mark.parametrize("argument", ["size", "groups"])
@pytest.mark.parametrize("value", [0, -1, 2.5, "5", math.inf, 1j, 2**31, 2**64 - 40])
def test_a_size_or_groups_that_is_no_positive_integer_is_named(argument, value):
    with pytest.raises(ValueError, match=argument) as caught:
        LocalResponseNorm(**{argument: value})
    assert str(caught.value) == f"{argument} is {value!r}; expected an integer from 1 to 2147483647"


@pytest.mark.bad_input
@pytest.mark.parametrize("argument", ["alpha", "beta", "k"])
@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, -1e-9, -1, "2", None, True, 1j, [2.0]]
)
def test_a_constant_that_is_no_finite_number_of_at_least_0_is_named(argument, value):
    with pytest.raises(ValueError, match=argument) as caught:
        LocalResponseNorm(**{argument: value})
    assert str(caught.value) == f"{argument} is {value!r}; expected a finite number of at least 0"


arguments = pytest.mark.parametrize("argument", ["size", "groups", "alpha", "beta", "k"])


@pytest.mark.bad_input
@arguments
@pytest.mark.parametrize("number", [torch.tensor(1.0), nn.Parameter(torch.ones(()))], ids=type)
def test_a_constant_that_could_be_learned_is_refused_also_when_it_is_set_later(argument, number):
    expected = f"{argument} is a torch.*; expected a plain number, since .* does not learn it"
    with pytest.raises(ValueError, match=expected):
        LocalResponseNorm(**{argument: number})
    module = LocalResponseNorm()
    delattr(module, argument)
    setattr(module, argument, number)
    with pytest.raises(ValueError, match=expected):
        module(torch.ones(1, 5, 2))


@pytest.mark.bad_input
@arguments
@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -1, "1", None, 1j, True, [1], pytest.param(10**400, id="10**400")],
)
def test_what_an_argument_is_replaced_by_is_checked_by_the_next_forward_pass(argument, value):
    module = LocalResponseNorm()
    setattr(module, argument, value)
    with pytest.raises(ValueError, match=f"^{argument} is "):
        module(torch.ones(1, 5, 2))


@pytest.mark.bad_input
@pytest.mark.parametrize("argument", ["alpha", "beta", "k"])
@pytest.mark.parametrize("number", [2**100, 1e300, 0, 5e-324], ids=repr)
def test_any_finite_number_is_computed_with(device, argument, number):
    x = torch.ones(1, 5, 2, device=device)
    theirs = nn.LocalResponseNorm(3, **{"alpha": 1.0, "k": 2.0, argument: float(number)})
    expected = on_cpu(theirs, x)
    actual = LocalResponseNorm(3, **{"alpha": 1.0, argument: number})(x)
    torch.testing.assert_close(actual, expected, equal_nan=True)


@pytest.mark.bad_input
@arguments
@pytest.mark.parametrize("kind", [np.int64, np.float32, np.float64, np.array], ids=str)
def test_a_number_of_any_library_that_replaces_an_argument_is_used(device, argument, kind):
    if kind in {np.float32, np.float64} and argument in {"size", "groups"}:
        return
    x = random_tensor((2, 6, 3, 3), torch.float32, 0, device=device).requires_grad_()
    module, expected = LocalResponseNorm(), LocalResponseNorm(**{argument: 3})
    setattr(module, argument, kind(3))
    assert torch.equal(module(x), expected(x))
    gradients = [torch.autograd.grad(norm(x).sum(), x)[0] for norm in (module, expected)]
    assert torch.equal(*gradients)


@pytest.mark.bad_input
def test_numpys_numbers_are_stored_as_plain_ones(device):
    one = np.float32(1)
    module = LocalResponseNorm(np.int64(3), one, one, one, groups=np.uint8(2))
    stored = (module.size, module.alpha, module.beta, module.k, module.groups)
    assert [type(number) for number in stored] == [int, float, float, float, int]
    x = random_tensor((2, 6, 3, 3), torch.float32, 0, device=device)
    assert torch.equal(module(x), LocalResponseNorm(3, 1.0, 1.0, 1.0, groups=2)(x))


# The tracer passes stand-ins for the sizes, which the run with type checks refuses.
@pytest.mark.bad_input
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_trace_can_be_converted_to_another_dtype(device, dtype):
    module = LocalResponseNorm(groups=2)
    x = random_tensor((2, 6, 3, 3), torch.float32, 0, device=device)
    traced = torch.jit.trace(module, x).to(dtype)
    assert traced(x.to(dtype)).dtype == dtype
    torch.testing.assert_close(traced(x.to(dtype)).float(), module(x), rtol=0.02, atol=0.02)


NO_INPUTS = {
    "rank 2": (lambda x: x[0], "torch.float32 of shape (6, 2)"),
    "rank 0": (lambda x: x[0, 0, 0], "torch.float32 of shape ()"),
    "uint8": (lambda x: x.byte(), "torch.uint8 of shape (4, 6, 2)"),
    "int64": (lambda x: x.long(), "torch.int64 of shape (4, 6, 2)"),
    "bool": (lambda x: x.bool(), "torch.bool of shape (4, 6, 2)"),
    "complex": (lambda x: x * 1j, "torch.complex64 of shape (4, 6, 2)"),
    "float8": (lambda x: x.to(torch.float8_e5m2), "torch.float8_e5m2 of shape (4, 6, 2)"),
    "quantised": (
        lambda x: torch.quantize_per_tensor(x, 1.0, 0, torch.quint8),
        "torch.quint8 of shape (4, 6, 2)",
    ),
    "sparse": (lambda x: x.to_sparse(), "torch.float32 of layout torch.sparse_coo"),
    "rows": (lambda x: x.to_sparse_csr(), "torch.float32 of layout torch.sparse_csr"),
    "oneDNN's": (lambda x: x.to_mkldnn(), "torch.float32 of layout torch._mkldnn"),
    "nested": (lambda x: torch.nested.nested_tensor([x[0], x[1, :5]]), "torch.float32, nested"),
    "jagged": (
        lambda x: torch.nested.nested_tensor([x[0], x[1, :5]], layout=torch.jagged),
        "torch.float32, nested",
    ),
}


@pytest.mark.bad_input
@pytest.mark.filterwarnings("ignore")  # that nested and sparse tensors are new
@pytest.mark.parametrize("kind", NO_INPUTS)
def test_a_wrong_rank_dtype_or_layout_is_told_what_is_expected(kind):
    convert, came = NO_INPUTS[kind]
    x = convert(torch.ones(4, 6, 2))
    with pytest.raises(ValueError, match="LocalResponseNorm") as caught:
        LocalResponseNorm()(x)
    assert str(caught.value) == (
        f"the input of LocalResponseNorm is {came}; expected a dense tensor (batch, channels, ...) "
        "of at least 3 dimensions, float16, bfloat16, float32 or float64"
    )


@pytest.mark.bad_input
@pytest.mark.parametrize("x", [None, 1.0, [[[1.0]]], "x", np.ones((1, 5, 2))], ids=type)
def test_an_input_that_is_no_tensor_is_a_type_error_that_names_it(x):
    with pytest.raises(TypeError, match=f"the input of LocalResponseNorm is a {type_name(x)}; exp"):
        LocalResponseNorm()(x)


class Marked(torch.Tensor):
    pass


@pytest.mark.parametrize(
    "x",
    [
        torch.ones(2, 5, 3).as_subclass(Marked),
        nn.Parameter(torch.ones(2, 5, 3)),
        torch.ones(1).expand(2, 5, 3),
        torch.ones(2, 5, 3, device="meta"),
        torch._efficientzerotensor((2, 5, 3)),
        torch.ones(2, 0, 3),
        torch.ones(2, 5, 0),
        torch.ones(2, 5, 3, 1, 1, 1, 1, 1),
    ],
    ids=lambda x: f"{type(x).__name__} {tuple(x.shape)} {x.device}",
)
@pytest.mark.parametrize("size", [1, 5, 2**31 - 1])
def test_any_dense_floating_tensor_is_computed(x, size):
    y = LocalResponseNorm(size)(x)
    assert (type(y), y.shape, y.device) == (
        Marked if isinstance(x, Marked) else torch.Tensor,
        x.shape,
        x.device,
    )
    if not y.is_meta:
        torch.testing.assert_close(y, normalized(x, size).as_subclass(type(y)))


def test_an_inference_tensor_is_computed(device):
    with torch.inference_mode():
        x = torch.ones(2, 5, 3, device=device)
    torch.testing.assert_close(LocalResponseNorm()(x), normalized(x, 5))


@pytest.mark.bad_input
def test_channels_that_the_groups_do_not_divide_are_named():
    with pytest.raises(ValueError, match="channels") as caught:
        LocalResponseNorm(groups=4)(torch.zeros(1, 6, 2, 2))
    assert str(caught.value) == (
        "the input of LocalResponseNorm has 6 channels, which 4 groups do not divide"
    )
