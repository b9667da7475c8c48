"""Hydra's own settings for a sweep: its launcher, its folder, its overrides.

All of them are checked before anything starts.
"""

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.diagnostics.distribution import install_line
from surgery.diagnostics.wording import nearest
from surgery.recipe.loading import HYDRA_VERSION_BASE
from surgery.recipe.recipe_file import recipes_folder
from surgery.sweep.grid import refuse_code

LAUNCHERS: Final = {
    "basic": "",
    "joblib": "joblib",
    "submitit_local": "submitit",
    "submitit_slurm": "submitit",
    "ray": "ray",
}
"""Hydra's launchers, each with the extra of this package that installs it."""


_QUIET: Final = {
    "hydra/hydra_logging": "none",
    "hydra/job_logging": "none",
    "hydra.output_subdir": "null",
}
_HYDRA_CODE: Final = ("hydra.", "hydra_plugins.")


@dataclass(frozen=True)
class HydraSettings:
    """Hydra's own settings for a sweep.

    Args:
        overrides: Hydra's own overrides, such as `hydra.launcher.n_jobs=2`.
        folder: Path of the folder of the sweep.
        launcher: Name of the launcher; `basic` by default.
        multirun: Whether Hydra sweeps, as by default; otherwise it runs one job.
        quiet: Whether output of Hydra and the launcher's processes is hidden; True by default.
    """

    overrides: tuple[str, ...]
    folder: Path
    launcher: str = "basic"
    multirun: bool = True
    quiet: bool = True


def read_flags() -> argparse.Namespace:
    """Hydra's own flags and its overrides, of the command line of this process."""
    from hydra._internal.utils import get_args_parser  # its flags are listed nowhere else

    flags: argparse.Namespace = get_args_parser().parse_args()
    return flags


def is_hydra_override(override: str) -> bool:
    """Whether an argument of the command line is a setting of Hydra itself."""
    key = override.lstrip("+~").partition("=")[0]
    return key == "hydra" or key.startswith(("hydra.", "hydra/", "hydra@"))


def read_settings(
    overrides: Sequence[str],
    *,
    launcher: str | None = None,
    out: Path | None = None,
    quiet: bool = True,
    multirun: bool = True,
) -> HydraSettings:
    """Check Hydra's own overrides before anything starts, and find the sweep's folder.

    Args:
        overrides: `hydra.…` and `hydra/…` overrides.
        launcher: A name in `LAUNCHERS`; None for Hydra's default.
        out: Path of the sweep's folder; that of `overrides`, or Hydra's multirun/DATE/TIME, by
            default.
        quiet: Whether Hydra writes no logs and no `.hydra` folders; True by default.
        multirun: Whether Hydra sweeps; True by default.

    Raises:
        SurgeryError: A501 for a launcher that isn't installed, R108 for code, R118 for the rest.
    """
    refuse_code(overrides)
    _refuse_sweepers(overrides)
    keys = {override.partition("=")[0] for override in overrides}
    composed = [f"{key}={value}" for key, value in _QUIET.items() if quiet and key not in keys]
    composed += [f"hydra/launcher={launcher}"] if launcher else []
    composed += overrides
    composed += ["hydra.mode=MULTIRUN"] if multirun else []
    with _composed_settings(composed) as config:
        _refuse_paths(OmegaConf.to_container(config.hydra, resolve=False))
        sweeps = config.hydra.mode == RunMode.MULTIRUN
        found = config.hydra.sweep.dir if sweeps else config.hydra.run.dir
        name = config.hydra.runtime.choices["hydra/launcher"]
        return HydraSettings(tuple(composed), Path(out or found).absolute(), name, sweeps, quiet)


@contextlib.contextmanager
def _composed_settings(overrides: list[str]) -> Iterator[DictConfig]:
    folder = str(recipes_folder())
    try:
        with initialize_config_dir(folder, job_name="sweep", version_base=HYDRA_VERSION_BASE):
            config = compose(None, overrides, return_hydra_config=True)
        _refuse_targets(OmegaConf.to_container(config.hydra, resolve=False))
        HydraConfig.instance().set_config(config)
        yield config
    except (HydraException, OmegaConfBaseException, OSError, ValueError, RecursionError) as error:
        raise SurgeryError(_bad_settings(error, overrides)) from error
    finally:
        HydraConfig.instance().cfg = None


def _refuse_targets(content: Any) -> None:
    """Refuse a class that is not Hydra's own, wherever the configuration of Hydra names one."""
    if isinstance(content, dict):
        target = str(content.get("_target_", _HYDRA_CODE[0]))
        if not target.startswith(_HYDRA_CODE):
            raise SurgeryError(diagnostic("R108.hydra", target=target))
    for item in content.values() if isinstance(content, dict) else ():
        _refuse_targets(item)


def _refuse_paths(content: Any) -> None:
    """Refuse a folder of a grid point outside the sweep's, where its result would not be found."""
    for key, name in {
        "hydra.sweep.subdir": content["sweep"]["subdir"],
        "hydra.output_subdir": content["output_subdir"],
    }.items():
        if name is not None and (Path(str(name)).name != str(name) or str(name) == ".."):
            raise SurgeryError(diagnostic("R118.folder", setting=key, name=name))


def _refuse_sweepers(overrides: Sequence[str]) -> None:
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key.startswith(("hydra/sweeper", "hydra.sweeper")) and "max_batch_size" not in key:
            raise SurgeryError(diagnostic("R118.sweeper", override=override))


def _bad_settings(error: Exception, overrides: Sequence[str]) -> Diagnostic:
    reason = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0]
    launchers = [
        override.partition("=")[2]
        for override in overrides
        if override.startswith("hydra/launcher=")
    ]
    if not (
        isinstance(error, MissingConfigException) and "hydra/launcher" in str(error) and launchers
    ):
        settings = "`python -m surgery.sweep --cfg hydra`"
        return diagnostic("R118.hydra", reason=reason, settings=settings)
    extra = LAUNCHERS.get(launchers[-1])
    if not extra:
        return diagnostic(
            "R118.launcher", launcher=launchers[-1], known=nearest(launchers[-1], LAUNCHERS)
        )
    return diagnostic("A501", launchers=launchers[-1], install_line=install_line(extra))
