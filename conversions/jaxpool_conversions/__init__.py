"""Hugging Face checkpoints to jaxpool parameters and back: rules as data, strict accounting, lazy reads."""
