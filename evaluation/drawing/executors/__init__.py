"""Who draws a grid's units: this process, or actors of a Ray cluster.

Correctness needs none of them: the store knows what is drawn, and whoever draws a unit draws the
same bytes. They only say who draws which unit when, and what becomes of one that fails.
"""
