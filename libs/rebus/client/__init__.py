"""The typed client over ``rebus.v1``; imports no torch, no server, no storage."""

from rebus.client.client import ENDPOINT_ENV, Client
from rebus.client.credentials import Credentials
from rebus.client.retries import RetryPolicy

__all__ = ["ENDPOINT_ENV", "Client", "Credentials", "RetryPolicy"]
