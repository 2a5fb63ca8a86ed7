"""Flax NNX modules, one file per family; they know nothing of buckets, engines or HTTP."""
