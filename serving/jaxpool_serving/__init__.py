"""The HTTP server: aiohttp over one engine."""
