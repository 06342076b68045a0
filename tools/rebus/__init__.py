"""The ``rebus`` command: a client of the services, which it hosts itself when no server is named."""
