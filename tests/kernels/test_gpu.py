"""The promises of the Triton kernel: its numbers, and the code that it is compiled to.

Without a GPU, Triton's interpreter computes the numbers, and the code is compiled but not run.
"""

import importlib.util
import math
import sys

import pytest
import torch
import torch.nn.functional as F

from alexnet_lib.kernels.cpu import LrnSettings

triton = pytest.importorskip("triton")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FORMATS = [torch.contiguous_format, torch.channels_last]
SETTINGS = {  # and the shape that they are tried on
    "the paper's towers": (LrnSettings(5, 2.0, 0.75, 2.0, 2), (1, 96, 2, 2)),
    "one tower": (LrnSettings(5, 2.0, 0.75, 2.0, 1), (3, 16, 3, 5)),
    "another exponent": (LrnSettings(3, 2.0, 0.6, 1.0, 1), (2, 12, 3, 3)),
    "an even size": (LrnSettings(4, 2.0, 0.75, 1.0, 2), (2, 8, 2, 3)),
    "channels that no load divides": (LrnSettings(5, 2.0, 0.75, 2.0, 2), (2, 14, 2, 3)),
    "wider than a group": (LrnSettings(16, 2.0, 0.75, 1.0, 2), (1, 6, 2, 2)),
    "one channel, one pixel": (LrnSettings(5, 2.0, 0.75, 1.0, 1), (300, 1, 1, 1)),
}
# Of the short dtypes, whose loads are of twice as many channels, two are enough.
CASES = [
    pytest.param(settings, shape, dtype, id=f"{name}-{str(dtype).removeprefix('torch.')}")
    for i, (name, (settings, shape)) in enumerate(SETTINGS.items())
    for dtype in (DTYPES if i in {0, 4} else DTYPES[:1])
]
any_format = pytest.mark.parametrize("memory_format", FORMATS, ids=["contiguous", "channels_last"])


def gpu_module(name):
    """The module of the kernel, read anew: Triton decides then how it runs."""
    spec = importlib.util.find_spec("alexnet_lib.kernels.gpu")
    spec = importlib.util.spec_from_file_location(name, spec.origin)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    return request.param


@pytest.fixture(scope="module")
def kernel(device):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", str(int(device == "cpu")))
        module = gpu_module(f"gpu_on_{device}")
    return module.local_response_norm


def numbers(shape, dtype, memory_format, seed):
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(shape, generator=generator)
    return x.to(dtype).contiguous(memory_format=memory_format)


def reference(x, grad, settings):
    """Output and gradient in float64, by autograd."""
    wide = x.double().requires_grad_()
    around = (settings.size // 2, (settings.size - 1) // 2)
    squares = [
        F.pad(part.square(), (0, 0, 0, 0, *around)) for part in wide.chunk(settings.groups, 1)
    ]
    means = torch.cat([part.unfold(1, settings.size, 1).mean(-1) for part in squares], 1)
    y = wide * (settings.k + settings.alpha * means).pow(-settings.beta)
    return y.detach(), *torch.autograd.grad(y, wide, grad.double())


def assert_rounded(actual, expected):
    # The interpreter cuts what does not fit bfloat16, where a GPU rounds.
    ulps = {torch.float32: 20, torch.bfloat16: 1.01, torch.float16: 0.51}[actual.dtype]
    tolerance = ulps * torch.finfo(actual.dtype).eps
    torch.testing.assert_close(actual.double().cpu(), expected, rtol=tolerance, atol=4e-6)


@any_format
@pytest.mark.parametrize(("settings", "shape", "dtype"), CASES)
def test_output_and_gradient_are_those_of_float64_rounded(
    kernel, device, settings, shape, dtype, memory_format
):
    x, grad = (numbers(shape, dtype, memory_format, seed) for seed in (0, 1))
    for given, expected in zip((None, grad), reference(x, grad, settings), strict=True):
        result = kernel(x.to(device), None if given is None else given.to(device), settings)
        assert result.dtype == dtype
        assert result.is_contiguous(memory_format=memory_format)
        assert_rounded(result, expected)


@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")  # of the interpreter
@any_format
def test_nothing_passes_the_border_of_a_group(kernel, device, memory_format):
    settings = LrnSettings(5, 2.0, 0.75, 0.0, 2)
    x, grad = (numbers((1, 16, 2, 2), torch.float32, memory_format, seed) for seed in (0, 1))
    x[:, [8, 15]] = 0  # with k=0, a neighbourhood of zeros has the scale 0
    expected = [part[:, 8:] for part in reference(x, grad, settings)]
    for bad in (math.nan, math.inf, 0.0):
        x[:, :8] = bad
        grad[:, :8] = 1
        y, gradient = (
            kernel(x.to(device), given, settings)[:, 8:] for given in (None, grad.to(device))
        )
        assert_rounded(y, expected[0])
        assert_rounded(gradient, expected[1])


@any_format
def test_other_layouts_and_empty_batches_are_computed(kernel, device, memory_format):
    settings = LrnSettings(5, 2.0, 0.75, 2.0, 1)
    x, grad = (numbers((2, 8, 6, 3), torch.float32, memory_format, seed) for seed in (0, 1))
    x, grad = x[:, :, ::2], grad[:, :, ::2].contiguous()
    for given, expected in zip((None, grad), reference(x, grad, settings), strict=True):
        given = None if given is None else given.to(device)
        assert_rounded(kernel(x.to(device), given, settings), expected)
        flat = kernel(
            x.flatten(2).to(device), None if given is None else given.flatten(2), settings
        )
        assert_rounded(flat, expected.flatten(2))
    assert kernel(x[:0].to(device), None, settings).shape == (0, 8, 3, 3)


@pytest.mark.parametrize(
    ("dtype", "adjacent", "backward", "most"),
    [("bf16", True, True, 60), ("bf16", True, False, 30), ("fp32", False, True, 80)],
)
def test_a_gpu_has_few_instructions_to_execute_for_a_value(
    dtype, adjacent, backward, most, tmp_path, monkeypatch
):
    # So few that its loads and stores take longer (docs/performance.md).
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    module = gpu_module("gpu_compiled")
    pointers = dict.fromkeys(("x", "out", *(["grad"] * backward)), f"*{dtype}")
    settings = {"three_quarters": True, "size": 5, "group": 48, "run": 8, "adjacent": adjacent}
    settings |= {"many": False, "block": 128}
    settings |= {"grad": None} if not backward else {}
    settings |= {"stride": 1} if adjacent else {}
    names = module._lrn.arg_names
    signature = dict.fromkeys(names, "fp32") | {"lanes": "i32", "stride": "i32"} | pointers
    signature |= dict.fromkeys(settings, "constexpr")
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in pointers}
    source = ASTSource(fn=module._lrn, signature=signature, constexprs=settings, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32))
    code = compiled.asm["ptx"]
    instructions = sum(line.rstrip().endswith(";") for line in code.splitlines())
    assert instructions <= 8 * most  # each thread has 8 values
    assert compiled.metadata.shared == 0
    assert ("v4.b32" in code) == adjacent  # loads and stores of 16 bytes
