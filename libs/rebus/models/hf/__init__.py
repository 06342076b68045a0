"""Language models, LLaVA (NeXT), InternVL and Idefics2 from and to Hugging Face folders, and from GGUF files."""

from rebus.models.hf.convert import read_folder, write_folder
from rebus.models.hf.folders import export_folder, import_folder
from rebus.models.hf.gguf_file import import_gguf, read_gguf
from rebus.models.hf.idefics2 import read_idefics2, write_idefics2
from rebus.models.hf.internvl import read_internvl, write_internvl
from rebus.models.hf.llava import read_llava, write_llava
from rebus.models.hf.llava_next import read_llava_next, write_llava_next
from rebus.models.hf.tiles import read_tiles

__all__ = [
    "export_folder",
    "import_folder",
    "import_gguf",
    "read_folder",
    "read_gguf",
    "read_idefics2",
    "read_internvl",
    "read_llava",
    "read_llava_next",
    "read_tiles",
    "write_folder",
    "write_idefics2",
    "write_internvl",
    "write_llava",
    "write_llava_next",
]
