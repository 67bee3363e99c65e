"""`python -m fastslow.tools.check_device cuda`: proof, on the spot, that a device answers rightly."""
