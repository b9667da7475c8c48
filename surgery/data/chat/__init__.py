"""Conversations as a chat template writes them, cut where answers begin and end."""
