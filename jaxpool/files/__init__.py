"""Files in and results out: readers and writers of every format, and the stream that runs between them.

Readers and writers import ``errors`` only and know no model; ``stream`` takes an ``LLM`` as it comes. Commands,
training and jobs import them.
"""
