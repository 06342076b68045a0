"""``python -m services``: all services in one process."""

from services.harness.server import NAMES, main

raise SystemExit(main(NAMES))
