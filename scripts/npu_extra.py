"""Print what the test set-up installs besides: Qualcomm's compiler, where its wheel can be."""

import platform

GLIBC = (2, 35)


def main() -> None:
    """Print `,snapdragon` on Linux, x86-64, glibc 2.35 or newer, and nothing elsewhere."""
    library, release = platform.libc_ver()
    here = (platform.system(), platform.machine(), library)
    if here == ("Linux", "x86_64", "glibc") and tuple(map(int, release.split("."))) >= GLIBC:
        print(",snapdragon")


if __name__ == "__main__":
    main()
