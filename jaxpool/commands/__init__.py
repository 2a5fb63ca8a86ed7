"""The command ``jaxpool``: one module a subcommand, each with ``add_arguments`` and ``main``, and shared options.

The top of the house: these modules may import everything but the server, which ``main`` finds by name at run time.
Nothing imports them.
"""
