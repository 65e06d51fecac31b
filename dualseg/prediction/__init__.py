"""New scans in, label maps out: what the command reads and writes around `dualseg.inference`."""
