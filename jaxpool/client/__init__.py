"""Python clients of the server: ``http`` sends and retries, ``protocol`` is what goes over the wire.

Imports ``errors`` only, so that a client needs neither JAX nor transformers.
"""
