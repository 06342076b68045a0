"""Tasks by name: one module a task, imported here so that recipes find it."""
