"""Language models from Hugging Face folders and GGUF files, and into Hugging Face folders."""

from rebus.models.hf.convert import export_folder, import_folder, read_folder, write_folder
from rebus.models.hf.gguf_file import import_gguf, read_gguf

__all__ = ["export_folder", "import_folder", "import_gguf", "read_folder", "read_gguf", "write_folder"]
