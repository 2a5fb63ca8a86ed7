"""Python clients of the server: ``http`` sends and retries, ``protocol`` is what requests and answers look like.

Imports ``errors`` only, so that a client needs neither JAX nor transformers.
"""
