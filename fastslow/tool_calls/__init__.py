"""Tools: what clients offer, how models call them, and the grammars that hold a model to it."""
