"""Families of networks, the layers they share, and readers and writers of their files."""
