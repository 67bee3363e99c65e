"""The engine in another process: the HTTP side shares no lock with it, and outlives it."""
