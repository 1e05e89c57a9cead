"""Pods of a rendered Job, run by Docker."""

import re
from pathlib import Path

from tests.support.docker import Docker
from tests.support.manifests import Object, of_kind


class Pod:
    """One index of the rendered Job, as its controllers and a kubelet would run it.

    All but the GPU, of which there is none, and the volumes' sizes.
    """

    def __init__(
        self, docker: Docker, objects: list[Object], index: int, mounts: dict[str, Path]
    ) -> None:
        (job,) = of_kind(objects, "Job")
        (settings,) = of_kind(objects, "ConfigMap")
        self.docker, self.index, self.mounts = docker, index, mounts
        self.spec = job["spec"]["template"]["spec"]
        self.settings = settings["data"]
        self.host = f"{job['metadata']['name']}-{index}"
        self.domain = f"{self.spec['subdomain']}.{job['metadata']['namespace']}.svc.cluster.local"
        self.running = ""

    def start(self, kind: str) -> None:
        """Start the init container or the container."""
        (container,) = self.spec[kind]
        self.running = f"{self.host}-{container['name']}"
        user = self.spec["securityContext"]
        env = {
            **self.settings,
            **{e["name"]: e["value"] for e in container["env"]},
            "JOB_COMPLETION_INDEX": str(self.index),
        }
        arguments = [
            re.sub(r"\$\((\w+)\)", lambda match: env[match[1]], text) for text in container["args"]
        ]
        self.docker(
            *("run", "--detach", f"--name={self.running}", "--network=cluster"),
            *(f"--hostname={self.host}", f"--domainname={self.domain}"),
            f"--network-alias={self.host}.{self.domain}",
            *(f"--user={user['runAsUser']}:{user['runAsGroup']}", *self._security(container)),
            *(f"--memory={container['resources']['limits']['memory'].replace('i', '')}",),
            *(f"--env={name}={value}" for name, value in env.items()),
            *self._volumes(container),
            *(container["image"], *arguments),
        )

    def _security(self, container: Object) -> list[str]:
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        flags = [f"--cap-drop={name}" for name in security["capabilities"]["drop"]]
        read_only = ["--read-only"] if security["readOnlyRootFilesystem"] else []
        return [*flags, *read_only, "--security-opt=no-new-privileges"]

    def _volumes(self, container: Object) -> list[str]:
        flags = []
        volumes = {volume["name"]: volume for volume in self.spec["volumes"]}
        group = self.spec["securityContext"]["fsGroup"]
        for mount in container["volumeMounts"]:
            name, path = mount["name"], mount["mountPath"]
            if "emptyDir" in volumes[name]:
                flags.append(f"--tmpfs={path}:mode=2770,gid={group}")
            else:
                flags.append(f"--volume={self.mounts[name]}:{path}:ro")
        return flags

    def wait(self) -> int:
        """The exit code of what was started last."""
        return self.docker.wait(self.running)

    def log(self) -> str:
        """What it has printed."""
        return self.docker("logs", self.running)
