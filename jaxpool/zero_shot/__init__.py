"""Labels that a caller names: the probabilities of answers to a prompt, by entailment, or by similarity.

``options`` is what the caller asks, ``prompts`` puts texts into words, ``tree`` says which tokens must be computed and
``programs`` computes them; ``judges`` has one judge a kind of model. ``recipes`` is a table of published models.
Imports the text room and the engine; ``LLM`` and the commands import it.
"""
