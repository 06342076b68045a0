"""Language models, LLaVA and InternVL from and to Hugging Face folders, and language models from GGUF files."""

from rebus.models.hf.convert import read_folder, write_folder
from rebus.models.hf.folders import export_folder, import_folder
from rebus.models.hf.gguf_file import import_gguf, read_gguf
from rebus.models.hf.internvl import read_internvl, write_internvl
from rebus.models.hf.llava import read_llava, write_llava
from rebus.models.hf.tiles import read_tiles

__all__ = [
    "export_folder",
    "import_folder",
    "import_gguf",
    "read_folder",
    "read_gguf",
    "read_internvl",
    "read_llava",
    "read_tiles",
    "write_folder",
    "write_internvl",
    "write_llava",
]
