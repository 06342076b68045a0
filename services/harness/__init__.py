"""What every service shares: one server, one interceptor, one way to turn errors into statuses."""
