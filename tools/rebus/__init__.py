"""The ``rebus`` command: a client of the services, which it hosts itself when no server is named."""

import os

# gRPC's core logs to stderr from its first import on; what matters reaches people as an error of the call.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
