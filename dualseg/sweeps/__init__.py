"""Many runs: what a study consists of, launching its runs, and how far they are."""
