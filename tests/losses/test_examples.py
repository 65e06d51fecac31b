"""Every loss has an example in its docstring, and examples print what they say; those of the networks too."""

import doctest
import inspect
from importlib import import_module

import pytest

import dualseg.losses
import dualseg.networks

LOSSES = [name for name in dualseg.losses.__all__ if not inspect.isclass(getattr(dualseg.losses, name))]


def attempted(public: object) -> int:
    """How many lines of a docstring were run. Unwrapped, since doctest passes over what torch.no_grad decorates."""
    own = inspect.unwrap(public)
    globs = vars(import_module(own.__module__)).copy()
    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder().find(own, own.__name__, globs=globs):
        runner.run(test)
    assert not runner.failures
    return runner.tries


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_an_example_that_is_right(name):
    assert attempted(getattr(dualseg.losses, name)) > 0


@pytest.mark.parametrize("name", [name for name in dualseg.networks.__all__ if name != "SCALE"])
def test_examples_of_networks_are_right(name):
    attempted(getattr(dualseg.networks, name))
