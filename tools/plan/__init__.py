"""What a model would do on a device that need not be here: a roofline from bytes, operations and links."""
