"""Several engines behind one server, on Ray Serve. Nothing else of fastslow imports ray."""
