"""A real one-node Kubernetes for one test run, started and ended by the kit's `kube.sh`.

Reads the kit and k8s/; writes below one work folder. Invariant: images come from the run's own Docker engine,
nothing listens outside the machine, and `down` ends what `up` started.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.engine import CommandError, run
from tests.deploy.kube_render import Object, for_one_twenty, is_known, render

POLL_S = 0.5
POD_LOGS = Path("/var/log/pods")
LIBRARY = "docker.io/library/"


class WaitError(AssertionError):
    """Something did not come to be in time; tells what was seen last."""


@dataclass(frozen=True)
class Cluster:
    """A running cluster.

    Attributes:
        work: Its folder.
        kubectl: The program.
        script: kube.sh.
        env: Environment for both.
    """

    work: Path
    kubectl: Path
    script: Path
    env: dict[str, str] = field(repr=False)

    def __call__(self, *words: str, check: bool = True, timeout_s: float = 90, stdin: str = "") -> str:
        """Run kubectl; returns its stdout."""
        command = [str(self.kubectl), "--kubeconfig", str(self.work / "admin.conf"), *words]
        done = subprocess.run(
            command, capture_output=True, text=True, env=self.env, timeout=timeout_s, input=stdin
        )
        if check and done.returncode:
            raise CommandError(f"kubectl {' '.join(words)}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return done.stdout

    def apply(self, objects: Iterable[Object]) -> None:
        """Apply objects that this cluster knows, in versions that it knows."""
        known = [for_one_twenty(item) for item in objects if is_known(item)]
        self("apply", "-f", "-", stdin=yaml.safe_dump_all(known))

    def apply_folder(self, folder: Path) -> list[Object]:
        """Render a kustomization and apply it, namespaces first; returns what was applied."""
        objects = sorted(render(self.kubectl, folder), key=lambda item: item["kind"] != "Namespace")
        self.apply(objects)
        return [item for item in objects if is_known(item)]

    def get(self, namespace: str, kind: str, name: str) -> Object:
        """One object."""
        found: Object = json.loads(self("-n", namespace, "get", kind, name, "-o", "json"))
        return found

    def pods(self, namespace: str, app: str) -> list[Object]:
        """Pods of an application."""
        words = ["-n", namespace, "get", "pods", "-l", f"app.kubernetes.io/name={app}", "-o", "json"]
        found: list[Object] = json.loads(self(*words))["items"]
        return found

    def wait(self, what: str, seen: Callable[[], Any], *, timeout_s: float) -> Any:
        """Poll until something is true; returns it.

        Raises:
            WaitError: It did not come to be.
        """
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            if found := seen():
                return found
            time.sleep(POLL_S)
        pods = self("get", "pods", "-A", "-o", "wide", check=False)
        raise WaitError(f"{what}: not within {timeout_s:g} s\n{pods}\n{self.events()}")

    def rolled_out(self, namespace: str, deployment: str, *, timeout_s: float = 300) -> None:
        """Wait until a deployment's newest version is all there is and ready.

        Raises:
            WaitError: It is not in time.
        """
        words = ["-n", namespace, "rollout", "status", f"deployment/{deployment}"]
        try:
            self(*words, f"--timeout={timeout_s:g}s", timeout_s=timeout_s + 20)
        except CommandError as error:
            pods = self("-n", namespace, "describe", "pods", check=False)
            raise WaitError(f"{error}\n{pods[-6000:]}\n{self.events()}") from None

    def job_done(self, namespace: str, job: str, *, timeout_s: float) -> None:
        """Wait until a job has succeeded.

        Raises:
            WaitError: It failed, or takes longer.
        """

        def ended() -> Object:
            status: Object = self.get(namespace, "job", job).get("status", {})
            return status if status.get("succeeded") or status.get("failed") else {}

        status = self.wait(f"job {job}", ended, timeout_s=timeout_s)
        if not status.get("succeeded"):
            raise WaitError(f"job {job} failed\n{self.logs(namespace, job)}")

    def logs(self, namespace: str, pod: str) -> str:
        """What containers of the pods whose names begin so wrote last; the API does not reach the kubelet."""
        files = sorted(POD_LOGS.glob(f"{namespace}_{pod}*/*/*.log"))
        return "\n".join(f"{file}:\n{file.read_text()[-3000:]}" for file in files)

    def events(self) -> str:
        """The last events of the cluster."""
        return self("get", "events", "-A", "--sort-by=.lastTimestamp", check=False)[-4000:]

    def load(self, *images: str) -> None:
        """Take images over from the Docker engine."""
        run(["bash", self.script, "load", *images], env=self.env, timeout_s=600)

    def tag(self, image: str, other: str) -> None:
        """Give an image that was loaded another name."""
        ctr = ["ctr", "-a", str(self.work / "ctrd" / "s.sock"), "-n", "k8s.io", "images", "tag", "--force"]
        run([*ctr, LIBRARY + image, LIBRARY + other], env=self.env)

    def names(self) -> None:
        """Tell DNS of the Services that exist now."""
        run(["bash", self.script, "dns"], env=self.env)


def cluster_of(kit: Path, work: Path, programs: Path, kubectl: Path, env: dict[str, str]) -> Cluster:
    """The cluster of a work folder, whether it runs yet or not.

    Args:
        kit: Folder of kube.sh.
        work: Its folder.
        programs: Folder of the server programs.
        kubectl: The program.
        env: In which docker reaches the engine.
    """
    path = f"{kubectl.parent}{os.pathsep}{env.get('PATH', '')}"
    whole = {**env, "KW": str(work), "KB": str(programs), "PATH": path}
    return Cluster(work, kubectl, kit / "kube.sh", whole)


def up(cluster: Cluster) -> None:
    """Start a cluster."""
    log = cluster.work.with_suffix(".log")
    # To a file: what stays behind would hold a pipe open for ever.
    with log.open("w") as out:
        command = ["bash", str(cluster.script), "up"]
        done = subprocess.run(command, stdout=out, stderr=out, env=cluster.env, timeout=240)
    if done.returncode or " Ready " not in cluster("get", "nodes", check=False):
        raise CommandError(f"kube.sh up: {log.read_text()[-3000:]}")
    log.unlink()


def down(cluster: Cluster) -> None:
    """End a cluster and all that runs in it."""
    subprocess.run(["bash", str(cluster.script), "down"], env=cluster.env, timeout=240, capture_output=True)


def volume(namespace: str, claim: str, folder: Path) -> Object:
    """A volume of a folder of this machine, for one claim only."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"{namespace}-{claim}"},
        "spec": {
            "capacity": {"storage": "100Gi"},
            "accessModes": ["ReadWriteMany", "ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"namespace": namespace, "name": claim},
            "hostPath": {"path": str(folder), "type": "Directory"},
        },
    }


def door(namespace: str, app: str, target: int) -> Object:
    """A Service that opens an application on a port of 127.0.0.1."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"{app}-door", "namespace": namespace},
        "spec": {
            "type": "NodePort",
            "selector": {"app.kubernetes.io/name": app},
            "ports": [{"port": 80, "targetPort": target}],
        },
    }
