"""The gradient audit as a table for the terminal."""

from collections.abc import Sequence

from rich.table import Table

from dualseg.methods.audit import AuditRow

STYLE = {"live": "", "dead": "bold red", "leak": "bold red", "empty": "yellow", "absent": "dim"}
NOTE = {
    "live": "live",
    "dead": "ON, BUT SENDS NOTHING",
    "leak": "REACHES ANOTHER NETWORK",
    "empty": "mask empty",
    "absent": "absent",
}


def audit_table(rows: Sequence[AuditRow], networks: Sequence[str], batches: int) -> Table:
    """Loss term x network -> largest weighted gradient norm over the batches, at full ramp."""
    table = Table(title=f"Gradient audit: largest norm of the weighted gradient in {batches} batches, full ramp")
    table.add_column("term", no_wrap=True)
    table.add_column("network")
    for network in networks:
        table.add_column(f"into {network}", justify="right")
    table.add_column("empty masks", justify="right")
    table.add_column("verdict")
    for row in rows:
        norms = [f"{row.norms[n]:.3e}" if row.norms.get(n) else "-" for n in networks]
        mask = f"{row.empty_masks}/{batches}" if row.verdict != "absent" else ""
        owner = "" if row.verdict == "absent" else row.network or "all"
        table.add_row(row.term, owner, *norms, mask, NOTE[row.verdict], style=STYLE[row.verdict])
    return table
