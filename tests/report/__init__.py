"""Tests of the report, on results of known numbers."""
