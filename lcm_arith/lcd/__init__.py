"""Latent Consistency Distillation, Algorithm 1 of arXiv:2310.04378: one file per symbol.

:mod:`.schedule` α(t), σ(t) and the grid; :mod:`.solver` what a network predicts, and Ψ;
:mod:`.guidance` ω; :mod:`.boundary` f_θ; :mod:`.loss` d; :mod:`.ema` θ⁻; :mod:`.step` the loss of
one batch; :mod:`.lcf` that of Latent Consistency Fine-tuning. The loop is
:mod:`lcm_arith.training`.
"""
