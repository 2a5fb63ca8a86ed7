"""Flax NNX modules: one file per family, and the parts families share (``layers``, ``attention``, ``mlp``, ``norms``).

They import the ops and nothing else of ours: no bucket, no engine, no file, no HTTP. The conversions import their
configs, the engine runs them.
"""
