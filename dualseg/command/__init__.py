"""How commands start, read their arguments, and fail. No torch here: `--help` and mistakes must answer at once."""
