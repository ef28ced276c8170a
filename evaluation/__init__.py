"""Evaluation: the λ1 × λ2 × steps grid, its metrics, statistics and pictures.

Data flows plan → engine (pictures in a store) → metrics → tables → report.
"""
