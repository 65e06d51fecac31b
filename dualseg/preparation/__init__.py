"""Raw downloads of the benchmarks -> the files that training reads. One module per dataset; no torch."""
