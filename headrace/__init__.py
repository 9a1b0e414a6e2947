"""Headrace: event-driven machine learning."""
