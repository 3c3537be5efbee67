"""Crash safety: checkpoints, run folders, clocks, memory.  Knows no presets and no networks."""
