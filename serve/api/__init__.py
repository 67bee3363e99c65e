"""What the server offers: the engine's contract, fields of requests, errors, keys and limits."""
