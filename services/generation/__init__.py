"""Text generation, streamed."""
