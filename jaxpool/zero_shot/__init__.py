"""Labels that a caller names: the probabilities of answers to a prompt, by entailment, or by similarity.

``options`` is what the caller asks, ``prompts`` puts texts into words, ``tree`` says which tokens must be computed and
``programs`` computes them; ``kinds`` has one way to answer a kind of model: ``judges`` goes it at once, ``served`` in
the company of other requests. Published models that are asked in words of their own are in ``checkpoints/recipes.py``.
Imports the text room and the engine; ``LLM`` and the commands import it.
"""
