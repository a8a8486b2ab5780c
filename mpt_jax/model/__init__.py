"""The frozen network, the prompt bank, and the one place where they meet."""
