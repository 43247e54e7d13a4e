import os
import signal
import tempfile

import pytest
from hypothesis import HealthCheck, settings

# Machines differ in speed: no deadlines, and the same examples on every one of them.
settings.register_profile(
    "alexnet",
    deadline=None,
    max_examples=30,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
# With run-time type checks, which the first examples pass or fail.
settings.register_profile("typed", settings.get_profile("alexnet"), max_examples=5)
settings.load_profile("alexnet")


def pytest_configure(config: pytest.Config) -> None:
    # A shell makes what it starts in the background ignore Ctrl-C, nohup a hang-up; so would the
    # processes that tests start and interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    hang_up = getattr(signal, "SIGHUP", None)  # Windows has none
    if hang_up and signal.getsignal(hang_up) is signal.SIG_IGN:
        signal.signal(hang_up, signal.SIG_DFL)
    # Kernels are compiled once in a session, into a folder that ends with it; the processes that
    # tests start use it too. The user's own cache is neither read nor written.
    folder = tempfile.TemporaryDirectory(prefix="alexnet-lib-tests-")
    config.add_cleanup(folder.cleanup)
    os.environ["XDG_CACHE_HOME"] = folder.name


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
