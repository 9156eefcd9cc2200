"""Check every shape annotation of the package while the tests and doctests run."""

from jaxtyping import install_import_hook

install_import_hook("nestling", "beartype.beartype")
