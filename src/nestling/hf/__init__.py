"""At home in the Hugging Face ecosystem: the only importer of transformers (extra ``hf``)."""

try:
    import transformers as _transformers
except ImportError as error:
    raise ImportError(
        'nestling.hf needs transformers >= 5.17: pip install "nestling[hf]"'
    ) from error

__all__: list[str] = []
