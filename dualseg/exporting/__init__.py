"""Trained networks for programs without this package: `dualseg-export`."""
