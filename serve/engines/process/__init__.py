"""The engine in a process of its own: the HTTP side shares no lock with it, and outlives it."""
