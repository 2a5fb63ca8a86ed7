"""Pure functions on arrays: attention, state spaces, expert routing, positions, pooling.

The only code that knows about backends (CPU, GPU, TPU) and kernels. Imports ``errors`` and itself.
"""
