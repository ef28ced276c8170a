"""Latent Consistency Distillation, Algorithm 1 of arXiv:2310.04378: one file per symbol.

:mod:`.schedule` α(t), σ(t) and the grid; :mod:`.solver` Ψ; :mod:`.guidance` ω; :mod:`.boundary`
f_θ; :mod:`.loss` d; :mod:`.step` the loss of one batch; :mod:`.trainer` the loop.
"""
