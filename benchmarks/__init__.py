"""Engines of other projects, and suites that run this one and them side by side."""
