"""Torch modules that operations add to those of PEFT: visual experts and learners."""
