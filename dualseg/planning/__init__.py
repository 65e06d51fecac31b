"""From headers, and the labels that a run may read, to spacing, intensities, patch and networks. No torch."""
