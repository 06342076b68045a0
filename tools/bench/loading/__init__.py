"""What ``tools.bench.loader`` measures: its pictures, and the loaders that read them."""
