"""The examples in docstrings, which the documentation shows as well, run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from importlib.util import find_spec

import pytest
import torch
from torch import nn

import cnnfast

MODULES = [module.name for module in pkgutil.walk_packages(cnnfast.__path__, "cnnfast.") if module.name[8] != "_"]
NAMES = {"cnnfast": cnnfast, "torch": torch, "nn": nn}
# What the examples of a module need; without it they are skipped.
NEEDS = {"cnnfast.data": "sklearn", "cnnfast.viz": "matplotlib"}


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str):
    examples = doctest.DocTestFinder().find(module := importlib.import_module(name), extraglobs=NAMES)
    if name in NEEDS and find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed")
    cnnfast.fallbacks(reset=True)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for example in examples:
        runner.run(example)
    assert runner.summarize(verbose=False).failed == 0, module.__file__
