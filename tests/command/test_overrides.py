"""Paths and names with letters that Hydra's grammar reserves reach the configuration as they were typed."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from dualseg.command.overrides import quoted, readable

PATHS = (
    "Müller",
    "study (1)",
    "br[1]",
    "a=1",
    "com,ma",
    "~/x",
    "a;b",
    "#1",
    "{x}",
    "日本",
    "O'Brien",
    'a"b',
    "a&b",
    "1e3",
)


def value_of(word):
    override = OverridesParser.create().parse_override(word)
    assert not override.is_sweep_override()
    return override.value()


@pytest.mark.parametrize("text", [*PATHS, "end\\", "\\'", "  spaces "])
def test_a_text_in_quotes_is_read_as_it_is(text):
    assert value_of(f"name={quoted(text)}") == text


@pytest.mark.parametrize("key", ["data.root", "output", "weights", "data.source.unlabeled"])
@pytest.mark.parametrize("text", PATHS)
def test_a_folder_is_the_folder_that_was_typed(key, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "/" not in text:
        (tmp_path / text).mkdir()
    (word,) = readable([f"{key}={text}"], multirun=False)
    assert value_of(word) == text
    (word,) = readable([f"{key}={tmp_path}/{text}"], multirun=True)
    assert value_of(word) == f"{tmp_path}/{text}"


def test_a_name_may_have_such_letters_too():
    assert [value_of(word) for word in readable(["name=Müller (1)"], multirun=False)] == ["Müller (1)"]


@pytest.mark.parametrize(
    "word",
    [
        "data.labeled=4",
        "data.patch_size=[16,16",
        "method",
        "~data.fold",
        "data.root='/a b'",
        "data.root=/a/b",
        "seed=0,1",
    ],
)
def test_other_words_stay_as_they_are(word):
    assert readable([word], multirun=False) == [word]


def test_several_folders_can_be_swept_over():
    assert readable(["data.root=/a,/b"], multirun=True) == ["data.root=/a,/b"]


def test_the_folder_of_a_flag_is_no_word_of_hydras():
    assert readable(["--config-dir", "/a=(1)", "seed=1"], multirun=False) == ["--config-dir", "/a=(1)", "seed=1"]
