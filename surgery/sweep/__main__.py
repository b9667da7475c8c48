"""`python -m surgery.sweep`: a sweep as a Hydra app, with Hydra's own flags and output."""

from surgery.cli.commands.sweep import hydra_app

hydra_app()
