"""PyTorch for processes that are to find none."""

raise ModuleNotFoundError("No module named 'torch'", name="torch")
