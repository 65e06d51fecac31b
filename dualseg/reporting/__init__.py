"""Run folders -> tables, figures and one self-contained HTML page."""

from dualseg.reporting.contents import example_cases
from dualseg.reporting.page import write_run_report

__all__ = ["example_cases", "write_run_report"]
