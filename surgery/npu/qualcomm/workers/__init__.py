"""Processes that Qualcomm's libraries run in, so that a crash there is an answer here."""
