"""Training data: pictures and captions, encoded once, drawn in batches.

:mod:`.options` what a user can say; :mod:`.sources` which pictures there are; :mod:`.captions` the
texts beside them; :mod:`.pixels` buckets and crops; :mod:`.drawings` pictures in memory;
:mod:`.encoding`, :mod:`.reading` and :mod:`.teacher` make tensors of them; :mod:`.store` keeps
those, in memory or in shards; :mod:`.prepare` does it all; :mod:`.drawing` batches; :mod:`.saved`
a set in its cache.
"""
