"""Findings as lines of text: unbroken, so that they can be searched and piped."""

from dualseg.data.checking.dataset import Findings


def findings_table(findings: Findings) -> str:
    """One line for each finding below a heading, what was read, and the notes."""
    roles = ", ".join(f"{count} {role}" for role, count in findings.images.items())
    seen = f"{sum(findings.images.values())} volumes ({roles}) and {findings.labels} labels were checked"
    if not findings.found:
        return "\n".join([f"Nothing is wrong: {seen}.", *findings.notes])
    rows = [("problem", "split", "case", "what"), *findings.found]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join([*(row[k].ljust(widths[k]) for k in range(3)), row[3]]) for row in rows]
    problems = f"{len(findings.found)} problem{'s' if len(findings.found) > 1 else ''}"
    return "\n".join([*lines, f"{problems}; {seen}.", *findings.notes])
