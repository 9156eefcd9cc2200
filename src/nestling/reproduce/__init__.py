"""Reproduce what is claimed: rows from real data, and the page of tables and pictures from rows."""
