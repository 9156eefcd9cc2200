"""At home in the Hugging Face ecosystem: the only importer of transformers (extra ``hf``)."""

from importlib.util import find_spec

if find_spec("transformers") is None:
    raise ImportError('nestling.hf needs transformers >= 5.17: pip install "nestling[hf]"')

__all__: list[str] = []
