"""Configuration -> objects, and the frame of the loop: settings, callbacks, checkpoints, loggers, provenance."""
