"""Files: reading what others wrote, and writing one canonical form.

:mod:`.container` reads and writes safetensors bytes, :mod:`.diffusers` knows one dialect of keys.
"""
