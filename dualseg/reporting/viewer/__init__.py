"""The page on which somebody looks through predictions, in three planes, the doubtful ones first."""

from dualseg.reporting.viewer.page import ReviewPage

__all__ = ["ReviewPage"]
