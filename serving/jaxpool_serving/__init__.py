"""The HTTP server: aiohttp over engines of jaxpool, with the requests, responses and errors of vLLM's server.

`command` reads the options and `run` listens; `app` puts the application together, `state` says what it holds. A
request passes `middleware`, a handler in `routes` (whose bodies stand in `schemas`), `compute`, `tokenization` and
`batching`, in this order. Nothing outside imports this package; `jaxpool serve` finds it by name.
"""
