"""The embedded default model (an ordinary Hugging Face folder) and the script that makes it."""
