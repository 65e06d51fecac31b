"""The coarser logits of planned networks: what the supervised terms make of them, and that no head is left over."""

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from method_toys import Volumes, tiny_parts
from torch import Tensor, nn

from dualseg.configuration import conf_dir
from dualseg.data.batch import Batch
from dualseg.methods import BidirectionalCopyPaste, SegmentationMethod, Supervised, Time
from dualseg.methods.audit import audit
from dualseg.networks import PlainUNet, ResidualEncoderUNet, SegmentationOutput
from dualseg.training.assembly import build_method
from dualseg.training.settings import resolve

METHODS = sorted(path.stem for path in (conf_dir() / "method").glob("*.yaml"))
PLAN = [
    "networks=planned",
    "plan.channels=[2,4,4,4]",
    "plan.strides=[[1,1,1],[2,2,1],[2,2,2],[2,2,2]]",
    "plan.kernels=[[3,3,3],[3,3,3],[3,3,3],[3,3,3]]",
    "plan.blocks=[1,2,1,1]",
]
SIZE = (16, 16, 8)


class Stored(nn.Module):
    """Gives what it was made of, as many patches as it sees."""

    def __init__(self, logits: Tensor, **others: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.others = others

    def forward(self, image: Tensor) -> SegmentationOutput:
        n = len(image)
        return SegmentationOutput(self.logits[:n], self.logits[:n], {k: v[:n] for k, v in self.others.items()})


def batch(labeled: int = 2, unlabeled: int = 2, size: tuple[int, ...] = SIZE) -> Batch:
    torch.manual_seed(5)
    label = torch.zeros(labeled, *size, dtype=torch.long)
    label[:, 4:12, 3:9, 2:6] = 1
    image = torch.randn(labeled + unlabeled, 1, *size)
    image[:labeled, 0] += 3 * label
    return Batch(image, label, ["case"] * len(image))


def built(method: str, *words: str) -> SegmentationMethod:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        sizes = [f"data.{key}=[{','.join(map(str, SIZE))}]" for key in ("patch_size", "stride")]
        settings = resolve(compose("train", ["data.root=/data", f"method={method}", *PLAN, *sizes, *words]))
    return build_method(settings, Volumes()).train()


def test_the_supervised_terms_are_means_over_the_scales() -> None:
    torch.manual_seed(1)
    given = batch(2, 0, (8, 8, 8))
    scales = [torch.randn(2, 2, side, side, side) for side in (8, 4, 2)]
    named = {"logits_scale1": scales[1], "signed_distance": torch.randn(2, 1, 8, 8, 8), "logits_scale2": scales[2]}
    method = Supervised(**tiny_parts(Volumes(), a=Stored(scales[0], **named)))
    values = {term.name: term.value.item() for term in method.loss_terms(given, Time(0, 10))}
    ce, dice = 0.0, 0.0
    for weight, z in zip((4 / 7, 2 / 7, 1 / 7), scales, strict=True):
        label = F.interpolate(given.label[:, None].double(), z.shape[2:], mode="nearest")[:, 0]
        p, y = z.double().softmax(dim=1), label.long()
        ce += weight * -p.log().gather(1, y[:, None]).mean().item()
        overlap = 2 * (p[:, 1] * label).sum() + 1e-5
        dice += weight * (1 - overlap / (p[:, 1].square().sum() + label.sum() + 1e-5)).item()
    assert values == {"supervised_ce": pytest.approx(ce, rel=1e-5), "supervised_dice": pytest.approx(dice, rel=1e-5)}


def test_other_outputs_change_no_digit() -> None:
    z = torch.randn(2, 2, 8, 8, 8)
    given = batch(2, 0, (8, 8, 8))
    values = [
        [term.value for term in Supervised(**tiny_parts(Volumes(), a=network)).loss_terms(given, Time(0, 10))]
        for network in (Stored(z), Stored(z, logits_decoder2=torch.randn(2, 2, 8, 8, 8)))
    ]
    assert all(torch.equal(first, second) for first, second in zip(*values, strict=True))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("iteration", [0, 10], ids=["first", "last"])  # bcp does two things
def test_every_parameter_that_is_not_frozen_gets_a_gradient(method: str, iteration: int) -> None:
    """Else DDP would wait for it, and end the run."""
    module = built(method)
    labeled_only = method == "supervised"
    terms = module.loss_terms(batch(2, 0 if labeled_only else 2), Time(iteration, 10))
    torch.stack([term.weight * term.value for term in terms]).sum().backward()
    for name, network in module.trained().items():
        left = [key for key, p in network.named_parameters() if p.requires_grad and p.grad is None]
        assert not left, (name, left)
    for name in module.takes:
        network = module.networks[name]
        assert isinstance(network, ResidualEncoderUNet if name == "a" else PlainUNet)
        assert bool(network(torch.randn(1, 1, *SIZE)).others) == (method != "bcp")


def test_bcp_leaves_the_coarser_logits_out() -> None:
    assert not BidirectionalCopyPaste.deep_supervision
    frozen = [name for name, p in built("bcp").networks["a"].named_parameters() if not p.requires_grad]
    assert sorted(frozen) == [f"decoder.seg_layers.{k}.{kind}" for k in (0, 1) for kind in ("bias", "weight")]


@pytest.mark.parametrize("method", ["supervised", "cps", "bcp"])
def test_the_audit_finds_the_supervised_terms_live(method: str) -> None:
    given = batch(2, 0 if method == "supervised" else 2)
    rows = {(row.term, row.network): row.verdict for row in audit(built(method), [given], 10)}
    for name in built(method).takes:
        assert rows["supervised_dice", name] == "live"
    assert "leak" not in rows.values() and "dead" not in rows.values()
