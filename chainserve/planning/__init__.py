"""Decisions about chains: values in, values out."""
