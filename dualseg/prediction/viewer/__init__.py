"""The page on which somebody looks through predictions, in three planes, the doubtful ones first."""

from dualseg.prediction.viewer.review_page import ReviewPage, copies_of, is_finished

__all__ = ["ReviewPage", "copies_of", "is_finished"]
