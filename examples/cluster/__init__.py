"""Several hosts on one machine, for trying out what crosses a network."""
