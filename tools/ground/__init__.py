"""How the ground of every claim is built: data, autoencoder, text tower, base, judge, vectors.

One module a stage of ``tools/build_embedded.py``, in the order in which they need each other.
"""
