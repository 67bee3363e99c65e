"""A call of a user becomes requests of the engine, and their answers an output."""
