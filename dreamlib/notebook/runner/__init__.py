"""Notebooks by papermill, one or a batch of them."""
