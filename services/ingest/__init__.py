"""Datasets: reading sources into versions, curating them, looking at them."""
