"""At home in the Hugging Face ecosystem: the only importer of transformers (extra ``hf``)."""

from importlib.util import find_spec

if find_spec("transformers") is None:
    raise ImportError('nestling.hf needs transformers >= 5.17: pip install "nestling[hf]"')

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from nestling.hf.cache import HopeCache
from nestling.hf.configuration import HopeConfig
from nestling.hf.modeling import HopeForCausalLM, HopeModel
from nestling.hf.stack_files import StackedConfig, load_stacked
from nestling.hf.stacked import StackedModel
from nestling.hf.stacking import stack_levels
from nestling.hf.tokenizer import byte_tokenizer

AutoConfig.register(HopeConfig.model_type, HopeConfig, exist_ok=True)
AutoModel.register(HopeConfig, HopeModel, exist_ok=True)
AutoModelForCausalLM.register(HopeConfig, HopeForCausalLM, exist_ok=True)

__all__ = [
    "HopeCache",
    "HopeConfig",
    "HopeForCausalLM",
    "HopeModel",
    "StackedConfig",
    "StackedModel",
    "byte_tokenizer",
    "load_stacked",
    "stack_levels",
]
