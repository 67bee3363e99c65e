"""Choice of the replica for a request, and of the number of replicas: plain Python, without a clock."""
