"""Sessions: a model's inner state that outlives the process."""

from nestling.session.compare import Movement, compare
from nestling.session.journal import read_saves
from nestling.session.save import Part, Save
from nestling.session.sealed import SessionError
from nestling.session.session import Session
from nestling.session.transfer import export_save, fork_save, import_save, roll_back

__all__ = [
    "Movement",
    "Part",
    "Save",
    "Session",
    "SessionError",
    "compare",
    "export_save",
    "fork_save",
    "import_save",
    "read_saves",
    "roll_back",
]
