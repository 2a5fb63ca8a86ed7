"""``jaxpool bench serve``: a load generator for servers that speak vLLM's ``POST /classify``, ours and others."""
