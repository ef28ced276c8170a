"""Intervals, comparisons, the best set, and the search that stops early by them."""
