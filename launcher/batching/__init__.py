"""The global batch: how it is cut, in which order samples come, and the stream of them."""
