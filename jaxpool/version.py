"""The version, in a module of its own: rooms that need it must not import the front door above them."""

__version__ = "0.1.0"
