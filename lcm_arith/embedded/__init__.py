"""The embedded default: a small real text-to-image model, its judge, its pictures, its vectors.

The folders beside this file hold the model (``emoji-sd``), the judge, the artwork (``data``) and
the vectors; ``tools/build_embedded.py`` makes them from public packages. ``files`` says where
everything lies, ``pictures`` draws, ``probe`` judges. Nothing is imported here.
"""
