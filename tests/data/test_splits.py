from types import SimpleNamespace

import pytest

from dualseg.data.left_atrium import case_list
from dualseg.data.splits import split_cases, split_source
from dualseg.errors import DualsegError

CASES = [f"c{i:02d}" for i in range(80)]
TEST = [f"t{i:02d}" for i in range(20)]


def test_the_first_cases_of_the_list_are_the_labeled_ones():
    split = split_cases(CASES, TEST, labeled=8)
    assert split.labeled == tuple(CASES[:8])
    assert split.unlabeled == tuple(CASES[8:])
    assert split.validation == ()
    assert split.test == tuple(TEST)


def test_more_labels_keep_the_fewer():
    fewer, more = (split_cases(CASES, TEST, labeled=n).labeled for n in (8, 16))
    assert more[:8] == fewer


def test_no_count_labels_all():
    split = split_cases(CASES, TEST)
    assert split.labeled == tuple(CASES) and split.unlabeled == ()


# method.md, section 5: training cases, labels at 10 % and at 20 %
@pytest.mark.parametrize("cases, ten, twenty", [(80, 8, 16), (62, 6, 12), (250, 25, 50)])
def test_ratios_give_the_literatures_counts(cases, ten, twenty):
    names = [str(i) for i in range(cases)]
    for ratio, count in ((0.1, ten), (0.2, twenty)):
        assert split_cases(names, (), labeled_ratio=ratio) == split_cases(names, (), labeled=count)


def test_held_out_cases_come_from_the_end_and_the_ratio_is_of_what_remains():
    split = split_cases(CASES, TEST, labeled_ratio=0.1, held_out_validation=10, held_out_test=20)
    assert split.test == tuple(CASES[60:])
    assert split.validation == tuple(CASES[50:60])
    assert split.labeled == tuple(CASES[:5])
    assert split.unlabeled == tuple(CASES[5:50])


def test_held_out_validation_alone_leaves_the_datasets_own_test_list():
    split = split_cases(CASES, TEST, labeled=8, held_out_validation=20)
    assert split.validation == tuple(CASES[60:]) and split.test == tuple(TEST)


def test_a_datasets_own_validation_list_is_used_where_none_is_held_out():
    own = split_cases(CASES, TEST, labeled_ratio=0.1, validation_cases=["v0", "v1"])
    assert own.validation == ("v0", "v1") and len(own.labeled + own.unlabeled) == 80 and own.test == tuple(TEST)
    held_out = split_cases(CASES, TEST, held_out_validation=10, validation_cases=["v0", "v1"])
    assert held_out.validation == tuple(CASES[70:]) and "v0" not in {*held_out.labeled, *held_out.test}
    test_held_out = split_cases(CASES, TEST, held_out_test=10, validation_cases=["v0", "v1"])
    assert (test_held_out.validation, test_held_out.test) == (("v0", "v1"), tuple(CASES[70:]))


@pytest.mark.parametrize("validation", [["c00"], ["t00"], ["v", "v"], ["a/v"]])
def test_a_bad_validation_list_is_refused_by_name(validation):
    with pytest.raises(DualsegError, match=rf"^{validation[0]}: "):
        split_cases(CASES, TEST, validation_cases=validation)


@pytest.mark.parametrize("labeled, validation, test", [(1, 0, 0), (8, 20, 0), (60, 0, 20), (30, 30, 20), (None, 5, 5)])
def test_roles_are_disjoint_and_complete(labeled, validation, test):
    split = split_cases(CASES, TEST, labeled=labeled, held_out_validation=validation, held_out_test=test)
    roles = [*split.labeled, *split.unlabeled, *split.validation, *split.test]
    assert len(roles) == len(set(roles))
    assert set(roles) == set(CASES) | (set() if test else set(TEST))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"labeled": 0}, r"data\.labeled=0: leaves 0 labeled volumes of 80 training cases; give between 1 and 80"),
        ({"labeled": 81}, r"data\.labeled=81.*between 1 and 80"),
        ({"labeled": -1}, r"data\.labeled=-1"),
        ({"labeled_ratio": 0.001}, r"data\.labeled_ratio=0\.001: leaves 0 labeled"),
        ({"labeled_ratio": 1.5}, r"data\.labeled_ratio=1\.5: leaves 120 labeled volumes of 80"),
        ({"labeled_ratio": -0.1}, r"data\.labeled_ratio=-0\.1"),
        ({"labeled": 8, "labeled_ratio": 0.1}, r"data\.labeled and data\.labeled_ratio are both given; keep one"),
        ({"held_out_test": 80}, r"data\.held_out_test=80: give 0 to 79"),
        ({"held_out_test": -1}, r"data\.held_out_test=-1"),
        ({"held_out_validation": -1}, r"data\.held_out_validation=-1"),
        ({"held_out_validation": 60, "held_out_test": 20}, r"data\.held_out_validation=60: give 0 to 59; 60 training"),
        ({"labeled": 61, "held_out_test": 20}, r"data\.labeled=61: leaves 61 labeled volumes of 60"),
    ],
)
def test_impossible_counts_are_refused(arguments, message):
    with pytest.raises(DualsegError, match=message):
        split_cases(CASES, TEST, **arguments)


def test_a_dataset_without_training_cases_is_refused():
    with pytest.raises(DualsegError, match=r"leaves 0 labeled .* 0 training cases"):
        split_cases((), TEST)


def test_the_shipped_left_atrium_lists_are_disjoint_and_of_the_official_length():
    train, test = case_list("train"), case_list("test")
    assert (len(train), len(test)) == (80, 20)
    assert len({*train, *test}) == 100


@pytest.mark.parametrize("train, test", [(["a", "b", "a"], ["t"]), (["a", "b"], ["t", "a"])])
def test_a_case_listed_twice_is_refused_by_name(train, test):
    with pytest.raises(DualsegError, match=r"^a: listed more than once"):
        split_cases(train, test)


@pytest.mark.parametrize("train, test", [(["a", "site/b"], ["t"]), (["a", "b"], ["site/b"]), (["a", "site\\b"], ())])
def test_a_case_whose_name_is_a_path_is_refused_by_name(train, test):
    """The report would not read the slices that are stored under it."""
    with pytest.raises(DualsegError, match=r"^site[/\\]b: .*no path separator"):
        split_cases(train, test)


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31mb", "a\u202eb", "a\udcffb", ""], ids=ascii)
@pytest.mark.parametrize("role", ["train_cases", "test_cases", "validation_cases", "unlabeled_cases"])
def test_a_case_that_no_table_can_name_is_refused(name, role):
    lists = {"train_cases": CASES, "test_cases": TEST, role: [*CASES[:0], "x", name]}
    with pytest.raises(DualsegError, match="case"):
        split_cases(**lists)


@pytest.mark.parametrize("values", [{"class_names": ("background", "a\nb")}, {"regions": {"a\tb": (1,)}}])
def test_a_class_that_no_table_can_name_is_refused(values):
    own = {"name": "mine", "class_names": ("background", "organ"), "regions": {}, **values}
    lists = {"train_cases": CASES, "test_cases": (), "validation_cases": (), "unlabeled_cases": ()}
    counts = {"labeled": 1, "labeled_ratio": None, "held_out_validation": 0, "held_out_test": 0, "draw": 0}
    counts |= {"fold": None, "folds": 5}
    with pytest.raises(DualsegError, match="mine: class"):
        split_source(SimpleNamespace(**own, **lists), counts)


def test_labeled_cases_of_a_draw_are_nested_in_size_and_differ_between_draws():
    sets = {}
    for draw in (0, 1, 2):
        splits = [split_cases(CASES, TEST, labeled=n, held_out_validation=10, draw=draw) for n in (4, 8, 16)]
        four, eight, sixteen = (split.labeled for split in splits)
        assert eight[:4] == four and sixteen[:8] == eight and len(set(sixteen)) == 16
        for split in splits:
            assert sorted([*split.labeled, *split.unlabeled]) == sorted(CASES[:-10])
            assert split.validation == tuple(CASES[-10:])
        sets[draw] = eight
    assert sets[0] == tuple(CASES[:8])
    assert len({frozenset(own) for own in sets.values()}) == 3
    assert sets[1] == split_cases(CASES, TEST, labeled=8, held_out_validation=10, draw=1).labeled


@pytest.mark.parametrize("draw", [-1, 1.5, "x"])
def test_a_draw_is_a_whole_number(draw):
    with pytest.raises(DualsegError, match=r"data\.draw="):
        split_cases(CASES, TEST, labeled=4, draw=draw)


def test_folds_part_the_labeled_cases_and_nothing_of_a_fold_is_trained_on():
    whole = split_cases(CASES, TEST, labeled=7, draw=3)
    parts = [split_cases(CASES, TEST, labeled=7, draw=3, fold=fold, folds=3) for fold in range(3)]
    assert sorted(case for part in parts for case in part.validation) == sorted(whole.labeled)
    assert [len(part.validation) for part in parts] == [3, 2, 2]
    for part in parts:
        assert {*part.labeled} | {*part.validation} == {*whole.labeled} and not {*part.labeled} & {*part.validation}
        assert part.unlabeled == whole.unlabeled and part.test == whole.test
        assert not {*part.validation} & {*part.unlabeled}


def test_scans_of_one_patient_are_in_one_fold():
    cases = ["p01_t1", "p02_t1", "p01_t2", "p03_t1", "p02_t2", "p04_t1"]
    for fold in range(3):
        split = split_cases([*cases, "p05_t1"], TEST, labeled=6, fold=fold, folds=3)
        names = [{case.partition("_")[0] for case in own} for own in (split.labeled, split.validation)]
        assert not names[0] & names[1] and sorted([*split.labeled, *split.validation]) == sorted(cases)
    with pytest.raises(DualsegError, match=r"data\.folds=5: give 2 to 4"):
        split_cases(cases, TEST, labeled=6, fold=0, folds=5)


def test_a_fold_validates_in_place_of_the_datasets_own_validation_cases():
    split = split_cases(CASES, TEST, labeled=4, fold=1, folds=2, validation_cases=("own",))
    assert split.validation == (CASES[1], CASES[3]) and split.labeled == (CASES[0], CASES[2])


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"labeled": 1, "fold": 0}, r"data\.fold=0: one labeled case"),
        ({"labeled": 4, "fold": 0, "folds": 5}, r"data\.folds=5: give 2 to 4, for there are 4"),
        ({"labeled": 4, "fold": 0, "folds": 1}, r"data\.folds=1: give 2 to 4"),
        ({"labeled": 4, "fold": 3, "folds": 3}, r"data\.fold=3: give 0 to 2"),
        ({"labeled": 4, "fold": -1, "folds": 3}, r"data\.fold=-1"),
        ({"labeled": 4, "fold": True, "folds": 3}, r"data\.fold=True"),
        ({"labeled": 4, "fold": 0, "folds": 2, "held_out_validation": 3}, r"data\.held_out_validation=3"),
    ],
)
def test_a_fold_that_cannot_be_is_refused(values, named):
    with pytest.raises(DualsegError, match=named):
        split_cases(CASES, TEST, **values)
