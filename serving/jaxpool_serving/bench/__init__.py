"""``jaxpool bench serve``: a load generator for servers that speak vLLM's ``POST /classify``, ours and others.

`load` sends texts, `server` starts one of ours and reads its metrics, `command` lays out the rounds and prints the
figures.
"""
