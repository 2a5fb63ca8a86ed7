"""What a checkpoint says: where its files are, its config, labels, tasks and Sentence-Transformers files.

All of it is decided once, in ``spec``: a ``Spec`` holds everything the engine needs to know. Imports the text room
(for the tokenizer files that it caches), the models' configs and the conversions' family tables; never the engine.
"""
