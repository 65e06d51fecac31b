"""What is wrong with a dataset: every file is read once, every problem becomes one line."""

from dualseg.data.checking.dataset import Findings, check_dataset
from dualseg.data.checking.table import findings_table

__all__ = ["Findings", "check_dataset", "findings_table"]
