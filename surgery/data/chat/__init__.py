"""Conversations as a chat template writes them, split where answers begin and end."""
