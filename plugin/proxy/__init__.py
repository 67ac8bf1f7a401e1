"""The proxy: an ASGI application between clients and the engine."""
