"""Answers over HTTP: many tasks on one backbone, prompts that come and go. Needs the extra `serve`."""
