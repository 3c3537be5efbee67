"""A stand-in for Colab's own package: the names that notebooks use, and how they behave."""

from google.colab import drive, output, userdata

__all__ = ["drive", "output", "userdata"]
