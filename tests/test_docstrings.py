"""The examples in the docstrings of every module run and print what they say."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import alexnet_lib

# Importing `__main__` would run the program.
MODULES = [
    "alexnet_lib",
    *(
        info.name
        for info in pkgutil.walk_packages(alexnet_lib.__path__, "alexnet_lib.")
        if not info.name.endswith("__main__")
    ),
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_the_docstrings_run(name, tmp_path, monkeypatch):
    if name.endswith("kernels.gpu"):
        pytest.importorskip("triton")
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    # doctest passes over what it takes for another module's, as it does with some decorators.
    examples = sum(len(test.examples) for test in doctest.DocTestFinder().find(module))
    assert examples == inspect.getsource(module).count(">>> ")
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0
