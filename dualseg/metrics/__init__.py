"""The field's overlap and surface metrics (method.md section 5): pure functions and a torchmetrics shell."""
