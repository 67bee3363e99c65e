"""Replicas without machines: made or recorded requests through the real router, with planned or measured steps."""
