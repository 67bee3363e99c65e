"""Replicas without machines: recorded or made requests through the real router, with planned or measured steps."""
