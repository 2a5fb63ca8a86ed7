"""``jaxpool bench``: how fast a model is here, and how fast others are on the same texts in the same minutes.

Each contender runs in a process of its own (``worker``), is told what to do line by line, and takes turns with the
others; ``ours`` and ``peers`` say how each is opened and called, ``texts`` has the seeded mix of lengths.
"""
