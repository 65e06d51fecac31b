"""docs/reference.md and docs/methods.md are what their scripts write; the first has every key of the configuration."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from dualseg.configuration import conf_dir
from dualseg.runs.identity import flatten

ROOT = Path(__file__).resolve().parents[2]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load("reference")


def test_the_page_of_methods_is_up_to_date() -> None:
    methods = load("methods")
    assert methods.PAGE.read_text() == methods.page(), "run .venv/bin/python docs/methods.py"


def test_the_page_is_up_to_date(script: ModuleType) -> None:
    assert script.PAGE.read_text() == script.reference(), "run .venv/bin/python docs/reference.py"


@pytest.mark.parametrize("words", [[], ["method=supervised"], ["data=pancreas"], ["+term=[erda,guided_contrast]"]])
def test_every_key_of_a_configuration_is_on_it(words: list[str]) -> None:
    page = (ROOT / "docs" / "reference.md").read_text()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", overrides=words), resolve=False)
    assert isinstance(config, dict)
    keys = {key.replace("networks.b.", "networks.a.") for key in flatten(config)}
    missing = [key for key in keys if f"| `{key}` |" not in page and not key.endswith(("_target_", "_partial_"))]
    assert sorted(missing) == ["logger"], "a group whose option is nothing"


def test_a_key_that_nothing_describes_is_an_error(script: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"trainer\.nothing: describe it"):
        script.description_of([script.Key("trainer.nothing", "1", "")])
