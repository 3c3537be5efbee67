"""Widths, letters and colours of every figure."""

ONE, TWO = 3.3, 7.0  # inches: one column of a page, and two
SMALL = 7  # points: the smallest letters, at the size at which a figure is printed
# Okabe & Ito's colours: distinct for colour-blind readers.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6E6E6E"
PURPLE, PALE = "#A63A79", "#A8A8A8"  # what to look at, and what not
# Quarters of t have an order, and so have these: dark to light, in grey print as well.
QUARTILES = ("#0D0887", "#9C179E", "#E16462", "#F9A126")
