import os
import signal
import tempfile

import pytest
import torch
from hypothesis import HealthCheck, settings

# Machines differ in speed: no deadlines, and the same examples on every one of them.
settings.register_profile(
    "alexnet",
    deadline=None,
    max_examples=20,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
# With run-time type checks, which the first examples pass or fail.
settings.register_profile("typed", settings.get_profile("alexnet"), max_examples=5)
settings.load_profile("alexnet")

DEVICES = [
    "cpu",
    *(["cuda"] if torch.cuda.is_available() else []),
    *(["mps"] if torch.backends.mps.is_available() else []),
]


def pytest_configure(config: pytest.Config) -> None:
    # A shell makes what it starts in the background ignore Ctrl-C, nohup a hang-up; so would the
    # processes that tests start and interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    hang_up = getattr(signal, "SIGHUP", None)  # Windows has none
    if hang_up and signal.getsignal(hang_up) is signal.SIG_IGN:
        signal.signal(hang_up, signal.SIG_DFL)
    # Of processes that share the cores, threads wait for each other: with one in each, the tests
    # take 234 s on two cores instead of 408.
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Kernels are compiled once in a session, into a folder that ends with it; the processes that
    # tests start use it too. The user's own cache is neither read nor written.
    folder = tempfile.TemporaryDirectory(prefix="alexnet-lib-tests-")
    config.add_cleanup(folder.cleanup)
    os.environ["XDG_CACHE_HOME"] = folder.name


# Of modules, for their fixtures that hold models.
@pytest.fixture(scope="module", params=DEVICES, ids="device-{}".format)
def device(request):
    """Each device of this machine; `pytest -k device-cuda` runs what computes on CUDA."""
    # cuDNN would multiply float32 in TF32, which keeps 10 bits of a fraction's 23, and may add in
    # another order each time.
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield torch.zeros(1, device=request.param).device  # with its number, as tensors have it


@pytest.fixture(params=["compiled", "torch's operations"])
def implementation(request, monkeypatch):
    """With the compiled kernels, and where they cannot be had."""
    # The run with type checks has to come before the library's import.
    from alexnet_lib.kernels import cpu

    library = cpu.load() if request.param == "compiled" else None
    if request.param == "compiled" and library is None:
        pytest.skip("there is no C compiler")
    monkeypatch.setattr(cpu, "load_when_worthwhile", lambda values: library)
    return request.param
