"""What a program will take on a chip that is not here: compiled by that chip's own compiler, then read from its HLO.

``hlo`` counts operations, bytes and cycles in the text of an optimised module; ``tpu`` opens a model from its
``config.json`` alone for a topology of TPUs. It imports the engine's programs and never runs one.
"""
