"""The engine: weights on a mesh, one compiled program per bucket, the planner, and the threads that keep a device busy.

``opening`` builds an ``Engine`` of a checkpoint; ``buckets`` is numpy alone. The engine imports the models, the ops
and what a checkpoint says; it never sees a prompt, a file or a request. ``LLM``, training and the server import it.
"""
