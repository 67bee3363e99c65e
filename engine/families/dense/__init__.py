"""Families of dense decoders that differ from Llama in a few fields."""
