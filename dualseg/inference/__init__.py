"""A trained run -> probabilities and label volumes."""

from dualseg.inference.sliding_window import SlidingWindow

__all__ = ["SlidingWindow"]
