"""The examples in the docstrings of every module run and print what they say."""

import doctest
import importlib
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
    monkeypatch.chdir(tmp_path)
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert results.failed == 0
