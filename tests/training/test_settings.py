"""What `resolve` makes of plans and pairs of networks, and which patches fit which networks."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException

from dualseg.configuration import conf_dir
from dualseg.errors import DualsegError
from dualseg.runs.identity import run_name
from dualseg.training.dataset import check_data
from dualseg.training.settings import check_for_scans, check_patch_divides, resolve

PLAN = [
    "networks=planned",
    "plan.channels=[8,16,32]",
    "plan.strides=[[1,1,1],[2,2,1],[3,2,1]]",
    "plan.kernels=[[3,3,1],[3,3,1],[3,3,3]]",
    "plan.blocks=[1,2,2]",
]


def resolved(*words: str) -> dict[str, Any]:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return resolve(compose("train", overrides=["data.root=/data", *words]))


def patched(*patch: int) -> list[str]:
    sides = ",".join(map(str, patch))
    return [f"data.patch_size=[{sides}]", f"data.stride=[{sides}]"]


def test_the_plan_stands_where_it_is_used_alone() -> None:
    settings = resolved(*PLAN, *patched(48, 48, 12))
    assert "plan" not in settings
    assert settings["networks"]["a"]["blocks"] == [1, 2, 2]
    for network in settings["networks"].values():
        assert network["strides"] == [[1, 1, 1], [2, 2, 1], [3, 2, 1]]


def test_another_plan_is_another_run() -> None:
    names = {run_name(resolved(*PLAN, *patched(48, 48, 12), *word)) for word in ([], ["plan.channels=[8,16,40]"])}
    assert len(names) == 2


@pytest.mark.parametrize("method", ["supervised", "mean_teacher", "bcp", "rcps", "semsim"])
def test_of_a_pair_a_method_of_one_network_has_the_first(method: str) -> None:
    planned = resolved(f"method={method}", *PLAN, *patched(48, 48, 12))["networks"]
    assert {name: network["architecture"] for name, network in planned.items()} == {"a": "residual_encoder"}
    assert run_name(resolved(f"method={method}")) == run_name(resolved(f"method={method}", "networks=vnet_vnet"))


def test_data_that_are_not_there_are_for_the_check_of_the_data_to_tell() -> None:
    """So that a finished run whose data have gone still shows its results."""
    settings = resolved("data=pancreas", "data.root=/nowhere", "method=solo_mix", "networks=vnet")
    assert settings["batch"]["unlabeled"] == 4
    with pytest.raises(InstantiationException, match="/nowhere"):
        check_data(settings)


def test_a_plan_has_no_other_keys() -> None:
    with pytest.raises(DualsegError, match=r"plan\.strdes: no such .*plan\.strides"):
        resolved(*PLAN, *patched(48, 48, 12), "+plan.strdes=2")


@pytest.mark.parametrize(
    "words, patch, fits",
    [
        ([], (3, 110, 87), [16, 112, 80]),
        ([], (0, 16, 16), None),
        (["networks=segresnet_vnet"], (48, 48, 40), [48, 48, 32]),
        (PLAN, (40, 51, 13), [42, 52, 13]),
        (PLAN, (7, 5, 1), [12, 8, 2]),  # the nearest, [6,4,1], would leave one voxel
        (PLAN, (6, 4, 1), [12, 8, 2]),
        ([*PLAN, "network@networks.b=vnet"], (48, 48, 12), [48, 48, 16]),
        ([*PLAN, "network@networks.b=vnet"], (40, 48, 16), [48, 48, 16]),
    ],
)
def test_a_patch_that_networks_cannot_divide(words: list[str], patch: tuple[int, ...], fits: list[int] | None) -> None:
    with pytest.raises(DualsegError) as caught:
        resolved(*words, *patched(*patch))
    message = str(caught.value)
    assert f"data.patch_size={[*patch]}" in message
    if fits:
        assert str(fits) in message
        resolved(*words, *patched(*fits))


@pytest.mark.parametrize(
    "patch", [(6, 4, 2), (6, 8, 1), (12, 4, 1), (48, 52, 7)], ids=lambda patch: "x".join(map(str, patch))
)
def test_patches_that_fit_the_plan_need_be_no_multiples_of_16(patch: tuple[int, ...]) -> None:
    assert resolved(*PLAN, *patched(*patch))["data"]["patch_size"] == [*patch]


def test_strides_of_other_networks_are_their_own_matter() -> None:
    """MONAI's UNet names one number a stage; it is padded to multiples of 16."""
    unet = {"_target_": "dualseg.networks.monai_network", "network": "UNet", "strides": [2, 2, 2]}
    check_patch_divides([32, 32, 16], {"a": unet})
    with pytest.raises(DualsegError, match="multiples of 16, 16 and 16"):
        check_patch_divides([32, 32, 20], {"a": unet})


@pytest.mark.parametrize("strides", ["2", "[[1,1],[2,2],[2,2]]", "[[1,1,1],[2,0,2],[2,2,2]]", "[]"])
def test_strides_that_are_none(strides: str) -> None:
    with pytest.raises(DualsegError, match=r"networks\.a\.strides=.*three whole numbers "):
        resolved(*PLAN, f"plan.strides={strides}")


def test_a_run_folder_with_a_patch_that_its_networks_cannot_divide() -> None:
    settings = resolved(*PLAN, *patched(48, 48, 12))
    check_for_scans(settings, Path("config.yaml"))
    settings["data"]["patch_size"] = [48, 47, 12]
    with pytest.raises(DualsegError, match=r"config\.yaml: data\.patch_size=\[48, 47, 12\]: .*6, 4 and 1,"):
        check_for_scans(settings, Path("config.yaml"))


@pytest.mark.parametrize(
    ("method", "labeled", "unlabeled"), [("solo_mix", "null", 0), ("dual_mix", "null", 0), ("solo_mix", "4", 4)]
)
def test_without_unlabeled_volumes_the_mixing_methods_train_on_labels_alone(
    method: str, labeled: str, unlabeled: int, tmp_path: Path
) -> None:
    words = [f"method={method}", "data=phantom", f"data.root={tmp_path}", "+data.source.shape=[16,16,16]"]
    settings = resolved(*words, "+data.source.train=5", "+data.source.test=1", f"data.labeled={labeled}")
    assert settings["batch"] == {"labeled": 4, "unlabeled": unlabeled}
