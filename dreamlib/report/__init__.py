"""Figures, tables and the live view.  They read files and compute no result of their own."""
