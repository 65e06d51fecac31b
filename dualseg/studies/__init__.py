"""Many runs: what a study consists of, launching it, how far it is, its rows, tables, figures and page."""
