"""The report's explanations, for a reader who has never heard of Nested Learning."""

from __future__ import annotations

GLOSSARY: tuple[tuple[str, str], ...] = (
    (
        "Bits per byte",
        "How many bits a model needs, on average, to encode the next byte of a text it has not "
        "seen. 8 is pure guessing, 0 is knowing it in advance. One bit less halves the number of "
        "bytes the model hesitates between. Lower is better everywhere on this page.",
    ),
    (
        "Held-out text",
        "The end of each text. No model is ever trained on it. All numbers here are measured on "
        "it, in separate sequences, each read without any memory of the one before (under "
        "“Reading on” the pieces of one passage follow each other).",
    ),
    (
        "Nested Learning",
        "A way to look at a model and its training as one system of learners inside learners. Each "
        "has its own data, its own goal and its own clock. Attention, recurrent memories, "
        "layers of weights and the optimizer's momentum are then the same kind of thing: a memory, "
        "a rule by which it is written, and how often that happens.",
    ),
    (
        "Memory",
        "Anything that holds what was seen and can be asked for it: here small matrices or "
        "networks that map a key to a value.",
    ),
    (
        "Learning rule",
        "How a memory is written: what the write should achieve (objective), what is kept of "
        "the old content (retention) and how much past writes push on (momentum).",
    ),
    (
        "Level, period",
        "How often a memory is written. A period of 1 means with every token, a period of 8,192 "
        "that the weights are held still for 8,192 tokens and then moved once, by all that was "
        "gathered meanwhile. Level 1 is the fastest.",
    ),
    (
        "Hope",
        "The model of the Nested Learning paper. Its sequence layer consists of memories that are "
        "written while the text is read and that make their own keys, values and step sizes; "
        "behind it stands a chain of ordinary layers with slower and slower clocks (the Continuum "
        "Memory System).",
    ),
    (
        "Transformer++",
        "The usual modern Transformer (rotary positions, gated layers), of the same number of "
        "parameters. Its only memory of the text is attention to what is in view.",
    ),
    (
        "Slow level",
        "Three copies of one model: weights that move with every step, their running average, "
        "which gives the answers, and a teacher that is held until new text surprises. The "
        "teacher writes text by itself (it dreams), and the fast weights must go on predicting in "
        "it what the teacher predicts. Nothing that was read is stored.",
    ),
    (
        "Forgetting",
        "How much worse a model is in the end on a domain than it was at its best moment after "
        "learning it, averaged over all domains but the last.",
    ),
    (
        "Plasticity",
        "How well a model takes up something new: bits per byte on each domain right after its "
        "turn, averaged. A model that never forgets because it never learns is no good either.",
    ),
    (
        "State",
        "Everything a model picked up from the text so far, as opposed to its weights. It can be "
        "saved, and it is thrown away between the sequences measured here.",
    ),
)

ONE_SEED = "One run with one seed."
ERRORS = (
    "The standard errors say how far a difference would move with other held-out text",
    " and, as measured on the default run, with other seeds.",
    "; another seed moves it too, by an unknown amount.",
)
SMALL = "Small models, few steps: this shows how the two behave, not how good either can get."
"""What every reader must be told before believing a difference."""
