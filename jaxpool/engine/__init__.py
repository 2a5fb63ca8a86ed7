"""The engine: weights on a mesh, one compiled program per bucket, the planner, and the threads that keep a device busy.

``opening`` builds an ``Engine`` of a checkpoint; ``buckets`` is numpy alone. ``prefixes`` has what texts begin with
alike computed once: ``beginnings`` finds it, ``prefix_store`` keeps it. The engine imports the models, the ops and what
a checkpoint says; it never sees a prompt, a file or a request. ``LLM``, training and the server import it.
"""
