"""Language models, LLaVA and Idefics2 from Hugging Face folders, language models from GGUF files, and such folders."""

from rebus.models.hf.convert import read_folder, write_folder
from rebus.models.hf.folders import export_folder, import_folder
from rebus.models.hf.gguf_file import import_gguf, read_gguf
from rebus.models.hf.idefics2 import read_idefics2, write_idefics2
from rebus.models.hf.llava import read_llava, write_llava

__all__ = [
    "export_folder",
    "import_folder",
    "import_gguf",
    "read_folder",
    "read_gguf",
    "read_idefics2",
    "read_llava",
    "write_folder",
    "write_idefics2",
    "write_llava",
]
