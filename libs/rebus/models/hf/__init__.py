"""Language models from Hugging Face folders and into them."""

from rebus.models.hf.convert import export_folder, import_folder, read_folder, write_folder

__all__ = ["export_folder", "import_folder", "read_folder", "write_folder"]
