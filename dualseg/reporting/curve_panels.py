"""The curves of a run's page: loss terms, validation, share of foreground, ramps and learning rates."""

import numpy as np

from dualseg.reporting import figures
from dualseg.reporting.contents import Curve, RunContents, sort_networks
from dualseg.runs.collapse import HIGH, LOW

SHARES_EXPLAINED = (
    "A class's share of the pseudo-labels divided by its share of the labels, a moving average: far above 1 it floods, "
    "far below 1 it drains"
)
GUARD_EXPLAINED = (
    f"It is 0 where the guard was closed, since a class was outside {LOW:g} to {HIGH:g} times its share of the labels: "
    "the labels alone taught then"
)


def _loss_name(name: str) -> tuple[str, str] | None:
    """(term, network) of a logged name; the network of a term both share is empty; None: not a loss."""
    match name.split("/"):
        case ["loss", term]:
            return term, ""
        case ["loss", network, term]:
            return term, network
    return None


def curve_networks(run: RunContents) -> list[str]:
    """Networks that own a curve ("" for shared terms), for the legend."""
    found = {parsed[1] for name in run.curves if (parsed := _loss_name(name))}
    found |= {n.split("/")[1] for n in run.curves if n.startswith("validation/") and n.endswith("/dice")}
    return sort_networks(found - {""}) + ([""] if "" in found else [])


def _panel(
    title: str,
    curves: dict[str, Curve],
    colours: dict[str, str],
    *,
    smooth: bool = True,
    legend: bool = False,
    explained: str = "",
) -> dict[str, str]:
    """A chart; without `legend` for what the page's own legend of networks explains."""
    ends = []
    for label, curve in curves.items():
        finite = curve.values[np.isfinite(curve.values)]
        tail = finite[-max(len(finite) // 50, 1) :] if smooth else finite[-1:]
        end = f"{np.mean(tail):.4g}" if len(tail) else "no finite value"
        bad = len(curve.values) - len(finite)
        name = f"{label} " if len(curves) > 1 else ""
        ends.append(f"{name}{end}" + (f" ({bad} of {len(curve.values)} values are not finite)" if bad else ""))
    words = "; ".join(ends)
    source = figures.curve_panel(curves, colours, smooth=smooth, legend=legend and len(curves) > 1)
    alt = f"{title} over iterations, at the end: {words}"
    return {"title": title, "source": source, "alt": alt, "words": words, "explained": explained}


def loss_panels(run: RunContents) -> list[dict[str, str]]:
    """A panel for each loss term, with a curve for each network that has it."""
    terms: dict[str, dict[str, Curve]] = {}
    for name, curve in run.curves.items():
        if parsed := _loss_name(name):
            terms.setdefault(parsed[0], {})[parsed[1]] = curve
    panels = []
    for term in sorted(terms, key=lambda term: term != "total"):  # stable: else as the method gives them
        curves = {network: terms[term][network] for network in sort_networks(terms[term])}
        panels.append(_panel(term, curves, {n: figures.network_colour(n) for n in curves}))
    return panels


def schedule_panels(run: RunContents) -> list[dict[str, str]]:
    """Validation Dice, shares of foreground and of classes, guard, ramps, learning rates; the second alone is noisy."""

    def under(prefix: str, suffix: str = "") -> dict[str, Curve]:
        chosen = {n: c for n, c in run.curves.items() if n.startswith(f"{prefix}/") and n.endswith(suffix)}
        return {n[len(prefix) + 1 : len(n) - len(suffix)]: c for n, c in chosen.items()}

    dice = under("validation", "/dice")
    rates = under("lr") | ({"lr": run.curves["lr"]} if "lr" in run.curves else {})
    panels = []
    if dice:
        ordered = {name: dice[name] for name in sort_networks(dice)}
        colours = {name: figures.network_colour(name) for name in ordered}
        last = max(int(curve.iterations[-1]) for curve in ordered.values())
        explained = f"Last evaluated at iteration {last:,}."
        panels.append(
            _panel("validation Dice, 0 to 1", ordered, colours, smooth=False, legend=True, explained=explained)
        )
    foreground = under("foreground")
    if foreground:
        colours = {name: figures.network_colour(name) for name in foreground}
        panels.append(_panel("share of foreground", foreground, colours, legend=True))
    others = {
        "share in pseudo-labels, 1: as in the labels": (under("pseudo_share"), SHARES_EXPLAINED),
        "guard, 1: open": (under("guard"), GUARD_EXPLAINED),
        "ramps": (under("ramp"), ""),
        "learning rate": (rates, ""),
    }
    for title, (curves, explained) in others.items():
        if curves:
            colours = {n: figures.OTHER_COLOURS[i % len(figures.OTHER_COLOURS)] for i, n in enumerate(sorted(curves))}
            panels.append(_panel(title, curves, colours, smooth=False, legend=True, explained=explained))
    return panels
