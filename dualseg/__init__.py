"""dualseg: semi-supervised 3-D medical image segmentation with two networks and uncertainty-guided pseudo-labels.

Kept light on purpose: `--help` and configuration mistakes must answer before torch is imported.
"""

__version__ = "0.1.0"
