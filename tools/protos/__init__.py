"""What is made from ``protos/rebus/v1``: the Python code, the golden descriptor, the reference; and its checks."""
