"""All durable state: one object store, reached by URL (``file:///path`` or ``s3://bucket/prefix``)."""

from rebus.store.objects import ObjectInfo, Store
from rebus.store.settings import StoreSettings

__all__ = ["ObjectInfo", "Store", "StoreSettings"]
