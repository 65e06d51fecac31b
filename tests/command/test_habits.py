"""What people type out of habit is answered with the key to use here, whether or not a plus stands before it."""

import re

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from dualseg import train
from dualseg.command.habits import HABITS, advice_on
from dualseg.configuration import conf_dir


@pytest.mark.parametrize(
    "word, key",
    [
        ("lr=0.1", "optimizer.lr=..."),
        ("optimizer.learning_rate=0.1", "optimizer.lr=..."),
        ("batch_size=4", "batch.labeled=..."),
        ("fast_dev_run=true", "trainer.max_iterations=2"),
        ("epochs=3", "trainer.max_iterations=..."),
        ("resume=true", "same command resumes"),
        ("ckpt_path=x.ckpt", "weights=RUN_FOLDER"),
        ("trainer.max_epochs=3", "trainer.max_iterations=..."),
        ("trainer.max_steps=3", "trainer.max_iterations=..."),
        ("trainer.fast_dev_run=true", "trainer.max_iterations=2"),
        ("trainer.limit_train_batches=2", "trainer.max_iterations=..."),
        ("trainer.limit_val_batches=2", "data.held_out_validation=N"),
        ("trainer.accumulate_grad_batches=2", "batch.labeled=..."),
        ("trainer.gradient_clip_val=1", "method.gradient_clip_norm=..."),
        ("trainer.enable_progress_bar=false", "trainer.progress_bar=true or false"),
        ("trainer.default_root_dir=x", "output=FOLDER"),
        ("trainer.log_every_n_steps=5", "trainer.log_every=N"),
        ("trainer.check_val_every_n_epoch=1", "trainer.validate_every=N"),
    ],
)
def test_a_key_of_other_tools(command, word, key):
    for prefix in ("", "+"):
        message = command(train.main, f"{prefix}{word}").complains(f"{word.partition('=')[0]}: no such", key)
        assert "Did you mean" not in message


@pytest.mark.parametrize("word", ["experiment=demo", "data=la"])
def test_a_plus_before_a_group_that_has_an_option(command, word):
    command(train.main, f"+{word}").complains(f"+{word}: {word.partition('=')[0]} has an option", f"write {word} ")


def test_every_key_that_is_advised_is_one():
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train")
    advised = {key for advice in HABITS.values() for key in re.findall(r"\b(?!torch|networks)[a-z]+\.[a-z_]+", advice)}
    assert {"optimizer.lr", "trainer.max_iterations"} <= advised
    for key in advised:
        assert OmegaConf.select(config, key, throw_on_missing=True) is not None or key in (
            "trainer.validate_every",
            "data.labeled",
        ), key


def test_no_key_of_dualseg_is_taken_for_a_habit():
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        plain = OmegaConf.to_container(compose("train"), resolve=False)
    assert not HABITS.keys() & {*plain, *plain["trainer"]}


def test_deeper_keys_are_the_user_s_own():
    assert advice_on("method.terms.lr") == ""
