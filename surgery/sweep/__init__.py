"""Sweeps: a grid of trials, run by Hydra's launchers."""
