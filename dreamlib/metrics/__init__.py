"""Metrics: extractors, Fréchet distance with floor and error, and the other scores.

Pure functions of feature arrays; a metric returns a value or raises.  Needs torch and numpy;
clean-fid and lpips are imported where they are used.
"""
