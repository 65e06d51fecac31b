"""The runs of a study -> tidy tables, comparisons, figures and one self-contained page."""

from dualseg.reporting.studies.writing import write_study

__all__ = ["write_study"]
