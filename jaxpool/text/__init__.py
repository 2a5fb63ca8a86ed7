"""From what a caller passes to token ids: prompts, chat templates, vocabulary files, the tokenizer and its limits.

Imports ``errors`` only, and no JAX: a server can tokenise in processes that hold no model.
"""
