"""fastslow: speculative decoding with fast and slow thinking."""
