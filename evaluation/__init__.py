"""Evaluation: the λ1 × λ2 × steps grid, its metrics, statistics and pictures.

``plans`` says what is drawn, ``drawing`` makes it, ``statistics`` and ``judging`` say what that is
worth, ``showing`` draws charts and the page: each imports those named before it alone. The modules
beside them are the grid as a whole: what was asked (``asked``, ``asking``), a run (``session``,
``running``, ``searching``), what it found (``measuring``, ``grid``, ``findings``, ``answers``,
``report``) and the folder that it leaves behind (``manifest``, ``upkeep``).
"""
