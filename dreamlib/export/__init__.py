"""A trained model leaves its run: as a folder that others open, and as one page that draws."""
