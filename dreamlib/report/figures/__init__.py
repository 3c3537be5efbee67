"""Every figure, drawn from the files of a run."""
