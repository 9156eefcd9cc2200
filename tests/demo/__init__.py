"""Tests of the demo, in miniature."""
