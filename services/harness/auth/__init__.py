"""Who calls, what they may do, and what they did: authentication, roles, audit."""

from services.harness.auth.access import AccessControl
from services.harness.auth.audit import AuditLog
from services.harness.auth.principal import Principal, current_principal
from services.harness.auth.security import Security

__all__ = ["AccessControl", "AuditLog", "Principal", "Security", "current_principal"]
