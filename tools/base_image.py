"""A Debian base for the images, on a machine that reaches Debian's packages and no image registry. `make base-image` runs it.

Usage: python3 tools/base_image.py [--engine podman] [--name localhost/taskmem-base:bookworm]

debootstrap makes a minimal root and the engine imports it. An image of that name is kept as it is. Needs root and debootstrap.
"""

import argparse
import subprocess
import tempfile

SUITE = "bookworm"
NAME = f"localhost/taskmem-base:{SUITE}"
PACKAGES = ("python3", "python3-venv", "ca-certificates", "git")


def build(engine: str, name: str) -> None:
    """Import the base as `name` unless the engine has it."""
    if subprocess.run([engine, "image", "inspect", name], capture_output=True, check=False).returncode == 0:
        return
    with tempfile.TemporaryDirectory() as root:
        wanted = f"--include={','.join(PACKAGES)}"
        made = subprocess.run(
            ["debootstrap", "--variant=minbase", wanted, SUITE, root], stdout=subprocess.PIPE, text=True, check=False
        )
        if made.returncode:
            raise SystemExit(f"debootstrap failed:\n{made.stdout[-2000:]}")
        packed = subprocess.Popen(["tar", "-C", root, "-c", "."], stdout=subprocess.PIPE)
        subprocess.run([engine, "import", "--quiet", "-", name], stdin=packed.stdout, check=True)
        if packed.wait():
            raise SystemExit("tar could not read what debootstrap made")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="podman", help="podman or docker")
    parser.add_argument("--name", default=NAME, help="the image's name")
    arguments = parser.parse_args()
    build(arguments.engine, arguments.name)


if __name__ == "__main__":
    main()
