"""The parts that operations add beside PEFT's own: visual experts and learners."""
