"""Run folders -> tables, figures and one self-contained HTML page."""

from dualseg.reporting.page import write_run_report
from dualseg.reporting.run_folder import example_cases

__all__ = ["example_cases", "write_run_report"]
