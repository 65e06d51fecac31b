"""The run folder: layout, checkpoints, curves, provenance, results."""
