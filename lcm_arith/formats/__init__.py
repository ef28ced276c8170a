"""Files: reading what others wrote, and writing one canonical form.

:mod:`.container` reads and writes safetensors bytes, :mod:`.dialects` reads keys of every dialect,
:mod:`.writers` writes them.
"""
