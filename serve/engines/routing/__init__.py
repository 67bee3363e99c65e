"""Which replica answers a request, and how many replicas there should be: plain Python, without a clock."""
