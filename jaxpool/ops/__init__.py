"""The only code that knows about backends."""
