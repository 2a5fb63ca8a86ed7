"""Training a classifier: labelled texts, a new head on a checkpoint, the optax loop, and how good the result is.

Imports the engine's programs and sharding, the checkpoint's ``Spec`` and the conversions; of the rooms below the
commands only these know that weights can change.
"""
