"""Training: a plan, an adapter on a resident base, the loop, what it keeps and tells.

:mod:`.plan` steps and rates; :mod:`.adapter` LoRA on a network; :mod:`.roles` who is student,
target and teacher; :mod:`.distillation` and :mod:`.denoising` the two lessons; :mod:`.loop` the
steps; :mod:`.numbers` number formats; :mod:`.processes` who trains; :mod:`.checkpoint` what is
kept; :mod:`.log`, :mod:`.sheets` and :mod:`.watch` what is told.
"""
