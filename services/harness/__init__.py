"""What every service shares: one server, one path that each call takes, one way to turn errors into statuses."""
