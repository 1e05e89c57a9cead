"""A kubelet for nodes that do not exist: runs the containers of their pods as processes of this machine.

Each pod has a network namespace on a bridge in the namespace `kube-fabric` (no way out of it), with an
address of its own; each container its own mounts, hostname and process tree (launch.py), a read-only
root, the uid of its security context and no capabilities. Not done: images, cgroups (memory, CPU), seccomp,
NetworkPolicy. A DNS server answers what EndpointSlices say. What a person may ask of it lies in CONTROL:

    partition.NODE   the node hears and says nothing to the API; its processes run on
    dead.NODE        power cut: its processes are killed, nothing is said
    shutdown.NODE    graceful shutdown: pods are ended as a kubelet with shutdownGracePeriod does

A pod with the label `ip-family: IPv6` has an IPv6 address only, as on a cluster without IPv4. The one image
that there is is IMAGE; that of PRIVATE takes a pull secret.
"""

import argparse
import base64
import datetime
import http.server
import json
import os
import re
import shutil
import signal
import socketserver
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
from pathlib import Path

import requests
from cluster_dns import ADDRESSES, FABRIC, Dns

HERE = Path(__file__).parent
PLACE = Path(os.environ["WORKER_KUBE"])
IMAGE, PRIVATE = "registry.example.org/worker:0.1.0", "registry.example.org/private/worker:0.1.0"
PRODUCT = Path(os.environ.get("PRODUCT", ".")).resolve()
# What the "image" shows: the checkout, its .venv (which may be a link), and the interpreter.
IMAGE_PATHS = list(dict.fromkeys([str(PRODUCT), str((PRODUCT / ".venv").resolve()), sys.base_prefix]))
ENTRYPOINT = [str(PLACE / "pkg/tini/usr/bin/tini-static"), "--", "worker"]
IMAGE_ENV = {
    "PATH": f"{PRODUCT}/.venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONPATH": str(PRODUCT), "HOME": "/tmp", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
}  # fmt: skip


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def micro() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def say(*words: object) -> None:
    print(time.strftime("%H:%M:%S"), *words, flush=True)


class Api:
    """The API server, a session per thread."""

    def __init__(self, url: str, token: str, ca: str) -> None:
        self.url, self.token, self.ca, self.local = url, token, ca, threading.local()

    @property
    def session(self) -> requests.Session:
        if not hasattr(self.local, "session"):
            self.local.session = requests.Session()
            self.local.session.headers["Authorization"] = f"Bearer {self.token}"
            self.local.session.verify = self.ca
            self.local.session.trust_env = False
        return self.local.session

    def __call__(self, method: str, path: str, body: object = None, kind: str = "application/json", ok=(), **query):
        answer = self.session.request(
            method, self.url + path, params=query, data=None if body is None else json.dumps(body),
            headers={"Content-Type": kind}, timeout=30,
        )  # fmt: skip
        if answer.status_code >= 400 and answer.status_code not in ok:
            raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
        return answer.json() if answer.text else {}

    def watch(self, path: str, handle) -> None:
        """Lists, then watches, for ever."""
        while True:
            try:
                found = self("GET", path)
                seen = {o["metadata"]["uid"]: o for o in found["items"]}
                handle("LIST", seen)
                answer = self.session.get(
                    self.url + path,
                    params={"watch": "1", "resourceVersion": found["metadata"]["resourceVersion"], "timeoutSeconds": 300},
                    stream=True, timeout=(10, 320),
                )  # fmt: skip
                for line in answer.iter_lines():
                    if line:
                        event = json.loads(line)
                        if event["type"] == "ERROR":
                            break
                        handle(event["type"], event["object"])
            except Exception as error:
                say("watch", path, repr(error)[:200])
                time.sleep(1)


def run(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"{command}: {done.stderr}")
    return done.stdout


class Node:
    def __init__(self, api: Api, name: str, control: Path) -> None:
        self.api, self.name, self.control = api, name, control

    def is_(self, state: str) -> bool:
        return (self.control / f"{state}.{self.name}").exists()

    @property
    def cut(self) -> bool:
        return self.is_("partition") or self.is_("dead")

    def register(self) -> None:
        node = {
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": self.name, "labels": {"kubernetes.io/hostname": self.name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}},
        }  # fmt: skip
        self.api("POST", "/api/v1/nodes", node, ok=(409,))

    def beat(self) -> None:
        lease = f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{self.name}"
        last = 0.0
        while True:
            try:
                if not self.cut:
                    if time.monotonic() - last > 8:
                        self.status()
                        last = time.monotonic()
                    self.renew(lease)
            except Exception as error:
                say("node", self.name, repr(error)[:200])
                last = 0.0
            time.sleep(2)

    def renew(self, lease: str) -> None:
        body = {"spec": {"holderIdentity": self.name, "leaseDurationSeconds": 40, "renewTime": micro()}}
        answer = self.api("PATCH", lease, body, "application/merge-patch+json", ok=(404,))
        if answer.get("code") == 404:
            self.api("POST", lease.rsplit("/", 1)[0], {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": self.name}, **body}, ok=(409,))

    def status(self) -> None:
        room = {"cpu": "64", "memory": "256Gi", "ephemeral-storage": "500Gi", "pods": "110", "nvidia.com/gpu": "8"}
        stamp = now()
        shutting = self.is_("shutdown")
        condition = {"type": "Ready", "status": "False" if shutting else "True", "reason": "KubeletReady", "message": "node is shutting down" if shutting else "", "lastHeartbeatTime": stamp}
        others = [{"type": t, "status": "False", "reason": "Fine", "lastHeartbeatTime": stamp} for t in ("MemoryPressure", "DiskPressure", "PIDPressure")]
        body = {"status": {
            "capacity": room, "allocatable": room, "conditions": [condition, *others],
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}, {"type": "Hostname", "address": self.name}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            "nodeInfo": {"kubeletVersion": "v1.34.0", "osImage": "none", "architecture": "amd64", "operatingSystem": "linux", "machineID": "", "systemUUID": "", "bootID": "", "kernelVersion": "", "containerRuntimeVersion": "", "kubeProxyVersion": ""},
        }}  # fmt: skip
        answer = self.api("PATCH", f"/api/v1/nodes/{self.name}/status", body, "application/strategic-merge-patch+json", ok=(404,))
        if answer.get("code") == 404 and not self.is_("removed"):
            self.register()


class Pod(threading.Thread):
    """One pod, from its binding to its end."""

    numbers = iter(range(10, 60000))
    lock = threading.Lock()

    def __init__(self, kubelet: "Kubelet", node: Node, pod: dict) -> None:
        super().__init__(daemon=True)
        self.kubelet, self.api, self.node, self.pod = kubelet, kubelet.api, node, pod
        meta = pod["metadata"]
        self.uid, self.key = meta["uid"], f"{meta['namespace']}/{meta['name']}"
        self.base = f"/api/v1/namespaces/{meta['namespace']}"
        with Pod.lock:
            self.number = next(Pod.numbers)
        self.only_ipv6 = meta.get("labels", {}).get("ip-family") == "IPv6"
        self.ip = f"fd00:18::1:{self.number:x}" if self.only_ipv6 else f"198.18.{1 + self.number // 250}.{1 + self.number % 250}"
        self.netns = f"kp{os.getpid()}-{self.number}"
        self.folder = kubelet.state / "pods" / f"{meta['name']}-{self.uid[:8]}"
        self.changed = threading.Condition()
        self.deleted = False  # the object is gone
        self.killed = False  # by a power cut
        self.reason = None  # of an end that the kubelet decides on
        self.lost = False  # what ran of it ended with the node, which is back
        self.running: dict[str, tuple[subprocess.Popen, int]] = {}
        spec = pod["spec"]
        self.inits = [self._waiting(c["name"]) for c in spec.get("initContainers", [])]
        self.mains = [self._waiting(c["name"]) for c in spec["containers"]]
        self.started = now()
        self.init_done = not self.inits

    def _waiting(self, name: str) -> dict:
        reason = "PodInitializing" if self.pod["spec"].get("initContainers") else "ContainerCreating"
        return {"name": name, "state": {"waiting": {"reason": reason}}, "ready": False, "restartCount": 0, "image": "", "imageID": ""}

    # What others tell it.

    def update(self, pod: dict) -> None:
        with self.changed:
            self.pod = pod
            self.changed.notify_all()

    def gone(self) -> None:
        with self.changed:
            self.deleted = True
            self.changed.notify_all()

    @property
    def ending(self) -> bool:
        return self.deleted or self.killed or bool(self.reason) or "deletionTimestamp" in self.pod["metadata"]

    @property
    def grace(self) -> float:
        meta = self.pod["metadata"]
        if self.reason:
            return min(self.pod["spec"].get("terminationGracePeriodSeconds", 30), 60)
        seconds = meta.get("deletionGracePeriodSeconds")
        seconds = self.pod["spec"].get("terminationGracePeriodSeconds", 30) if seconds is None else seconds
        return max(float(seconds), 2.0)

    # Its life.

    def run(self) -> None:
        phase = "Failed"
        try:
            phase = self.live()
        except Exception as error:
            say(self.key, "kubelet's own error", repr(error))
        finally:
            self.clean()
        self.finish(phase)

    def live(self) -> str:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.ending or self.lost:
            self.init_done = True
            return "Failed"
        self.report("Pending")
        self.network()
        while True:
            try:
                self.volumes()
                break
            except Exception as error:
                self.event("FailedMount", f"MountVolume.SetUp failed: {error}")
                with self.changed:
                    self.changed.wait_for(lambda: self.ending, 5)
                if self.ending:
                    return "Failed"
        self.pull()
        for number, container in enumerate(self.pod["spec"].get("initContainers", [])):
            code = self.container(container, self.inits[number], "Pending")
            if code is None or self.ending:
                return "Failed"
            if code:
                return "Failed"
        self.init_done = True
        threads, codes = [], {}
        for number, container in enumerate(self.pod["spec"]["containers"]):
            thread = threading.Thread(
                target=lambda c=container, s=self.mains[number]: codes.update({c["name"]: self.container(c, s, "Running")})
            )
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join()
        return "Succeeded" if all(code == 0 for code in codes.values()) else "Failed"

    def pull(self) -> None:
        """Wait until the images of all containers are there, as a kubelet does container by container."""
        spec = self.pod["spec"]
        firsts = [*zip(spec.get("initContainers", []), self.inits), *zip(spec["containers"], self.mains)]
        tries = 0
        while not self.ending:
            wrong = next(((c, s) for c, s in firsts if not self.pullable(c["image"])), None)
            if not wrong:
                return
            container, status = wrong
            tries += 1
            why = "ErrImagePull" if tries == 1 else "ImagePullBackOff"
            status["state"] = {"waiting": {"reason": why, "message": f"Back-off pulling image \"{container['image']}\""}}
            self.event("Failed" if tries == 1 else "BackOff", f"Failed to pull image \"{container['image']}\"")
            self.report("Pending")
            with self.changed:
                self.changed.wait_for(lambda: self.ending, 5)

    def pullable(self, image: str) -> bool:
        secrets = self.pod["spec"].get("imagePullSecrets", [])
        return image == IMAGE or (
            image == PRIVATE
            and any(self.api("GET", f"{self.base}/secrets/{each['name']}", ok=(404,)).get("code") != 404 for each in secrets)
        )

    def container(self, container: dict, status: dict, phase: str) -> int | None:
        """Run one to its end; returns its exit code, or None if it never started."""
        with self.changed:
            if self.ending:
                return None
        name = container["name"]
        spec_file, log_file = self.folder / f"{name}.json", self.folder / f"{name}.log"
        spec_file.write_text(json.dumps(self.container_spec(container)))
        (self.folder / f"{name}.root").mkdir(exist_ok=True)
        started = now()
        with log_file.open("ab") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.netns, sys.executable, "-S", "-E", str(HERE / "launch.py"), str(spec_file)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        first = self.first(process)
        self.running[name] = (process, first)
        status.update(state={"running": {"startedAt": started}}, ready=phase == "Running", started=True,
                      image=container["image"], imageID="local", containerID=f"local://{self.uid}-{name}")  # fmt: skip
        say(self.key, name, "started", f"pid {first}", self.ip, self.node.name)
        self.report(phase)
        killer = threading.Thread(target=self.terminate_when_ending, args=(name, process, first), daemon=True)
        killer.start()
        code = process.wait()
        code = 128 - code if code < 0 else code
        del self.running[name]
        with self.changed:
            self.changed.notify_all()
        say(self.key, name, "ended with", code)
        ended = {"exitCode": code, "reason": "Completed" if code == 0 else "Error", "startedAt": started, "finishedAt": now(), "containerID": f"local://{self.uid}-{name}"}
        status.update(state={"terminated": ended}, ready=code == 0 and phase != "Running", started=False)
        return code

    @staticmethod
    def first(process: subprocess.Popen) -> int:
        """The process that is number 1 in its container, as this machine knows it."""
        for _ in range(500):
            try:
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            except FileNotFoundError:
                break
            if children:
                return int(children[0])
            time.sleep(0.01)
        return process.pid

    def terminate_when_ending(self, name: str, process: subprocess.Popen, first: int) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.ending or process.poll() is not None)
        if process.poll() is not None:
            return
        if not self.killed:
            say(self.key, name, "SIGTERM, grace", self.grace)
            began = time.monotonic()
            self.kill(first, signal.SIGTERM)
            while process.poll() is None and time.monotonic() - began < self.grace and not self.killed:
                time.sleep(0.1)
        if process.poll() is None:
            say(self.key, name, "SIGKILL")
            self.kill(first, signal.SIGKILL)

    @staticmethod
    def kill(pid: int, number: int) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass

    # What it reports.

    def report(self, phase: str, extra: list[dict] = ()) -> None:
        if self.deleted:
            return
        while self.node.cut:
            if self.killed or self.deleted:
                return
            time.sleep(0.5)
        done = phase in ("Succeeded", "Failed")
        yes = {True: "True", False: "False"}
        ready = yes[phase == "Running"]
        why = {"reason": "PodCompleted"} if phase == "Succeeded" else {"reason": "PodFailed"} if phase == "Failed" else {}
        conditions = [
            {"type": "Initialized", "status": yes[self.init_done], **(why if phase == "Succeeded" else {})},
            {"type": "Ready", "status": ready, **why}, {"type": "ContainersReady", "status": ready, **why},
            *extra,
        ]  # fmt: skip
        old = {c["type"]: c for c in self.pod.get("status", {}).get("conditions", [])}
        for condition in conditions:
            same = old.get(condition["type"], {}).get("status") == condition["status"]
            condition["lastTransitionTime"] = old[condition["type"]].get("lastTransitionTime") if same else now()
        status = {
            "phase": phase, "conditions": conditions, "hostIP": "127.0.0.1", "hostIPs": [{"ip": "127.0.0.1"}],
            "podIP": self.ip, "podIPs": [{"ip": self.ip}], "startTime": self.started,
            "containerStatuses": self.mains, **({"initContainerStatuses": self.inits} if self.inits else {}),
            **({"reason": self.reason[0], "message": self.reason[1]} if self.reason and done else {}),
        }  # fmt: skip
        for _ in range(20):
            try:
                body = {"metadata": {"uid": self.uid}, "status": status}
                answer = self.api("PATCH", f"{self.base}/pods/{self.pod['metadata']['name']}/status", body, "application/strategic-merge-patch+json", ok=(404, 409))
                if answer.get("code") in (404, 409):
                    say(self.key, "status:", answer["message"])
                return
            except Exception as error:
                say(self.key, "status", repr(error)[:300])
                time.sleep(1)

    def finish(self, phase: str) -> None:
        """The last status; then, of a pod that is to be deleted, the object."""
        if self.killed:
            return  # nobody is left to say it
        extra = []
        if self.reason:
            extra = [{"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet", "message": self.reason[1]}]
        if self.init_done:
            for status in self.mains:
                if "terminated" not in status["state"]:
                    status["state"] = {"terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown", "message": "The container could not be located when the pod was terminated"}}
        self.report(phase, extra)
        while not self.deleted and not self.killed:
            with self.changed:
                self.changed.wait_for(lambda: self.deleted or self.killed or "deletionTimestamp" in self.pod["metadata"], 5)
            if self.deleted or self.killed:
                break
            if "deletionTimestamp" in self.pod["metadata"] and not self.node.cut:
                body = {"gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}}
                self.api("DELETE", f"{self.base}/pods/{self.pod['metadata']['name']}", body, ok=(404, 409))
                with self.changed:
                    self.changed.wait_for(lambda: self.deleted, 10)

    def event(self, reason: str, message: str) -> None:
        meta = self.pod["metadata"]
        body = {
            "apiVersion": "v1", "kind": "Event", "metadata": {"generateName": f"{meta['name']}.", "namespace": meta["namespace"]},
            "involvedObject": {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "namespace": meta["namespace"], "uid": self.uid},
            "reason": reason, "message": message, "type": "Warning", "source": {"component": "kubelet", "host": self.node.name},
            "firstTimestamp": now(), "lastTimestamp": now(), "count": 1,
        }  # fmt: skip
        try:
            self.api("POST", f"{self.base}/events", body)
        except Exception as error:
            say("event", repr(error)[:200])

    # What it is made of.

    def network(self) -> None:
        link, peer = f"kv{self.number}", f"kw{self.number}"
        run("ip", "netns", "add", self.netns)
        run("ip", "-n", FABRIC, "link", "add", link, "type", "veth", "peer", "name", peer)
        run("ip", "-n", FABRIC, "link", "set", link, "master", "br0", "up")
        run("ip", "-n", FABRIC, "link", "set", peer, "netns", self.netns)
        run("ip", "-n", self.netns, "link", "set", peer, "name", "eth0")
        run("ip", "-n", self.netns, "addr", "add", *([f"{self.ip}/64", "nodad"] if self.only_ipv6 else [f"{self.ip}/16"]), "dev", "eth0")
        run("ip", "-n", self.netns, "link", "set", "eth0", "up")
        run("ip", "-n", self.netns, "link", "set", "lo", "up")
        spec, meta = self.pod["spec"], self.pod["metadata"]
        self.hostname = spec.get("hostname") or meta["name"]
        full = f"{self.hostname}.{spec['subdomain']}.{meta['namespace']}.svc.cluster.local " if spec.get("subdomain") else ""
        (self.folder / "hosts").write_text(f"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n{self.ip}\t{full}{self.hostname}\n")
        (self.folder / "resolv.conf").write_text(
            f"nameserver {ADDRESSES[6 if self.only_ipv6 else 4]}\nsearch {meta['namespace']}.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5 timeout:2\n"
        )

    def volumes(self) -> None:
        self.sources = {}
        group = self.pod["spec"].get("securityContext", {}).get("fsGroup")
        for volume in self.pod["spec"].get("volumes", []):
            place = self.folder / "volumes" / volume["name"]
            place.mkdir(parents=True, exist_ok=True)
            self.sources[volume["name"]] = str(place)
            if "emptyDir" in volume:
                os.chown(place, 0, group or 0)
                os.chmod(place, 0o2777)
                continue
            files: dict[str, tuple[bytes, int]] = {}
            if "secret" in volume:
                self.from_secret(files, volume["secret"]["secretName"], volume["secret"])
            elif "configMap" in volume:
                self.from_map(files, volume["configMap"]["name"], volume["configMap"])
            elif "projected" in volume:
                mode = volume["projected"].get("defaultMode", 0o644)
                for source in volume["projected"]["sources"]:
                    if "serviceAccountToken" in source:
                        files[source["serviceAccountToken"]["path"]] = (self.token(source["serviceAccountToken"]), 0o600)
                    elif "secret" in source:
                        self.from_secret(files, source["secret"]["name"], {"defaultMode": mode, **source["secret"]})
                    elif "configMap" in source:
                        self.from_map(files, source["configMap"]["name"], {"defaultMode": mode, **source["configMap"]})
            else:
                raise RuntimeError(f"volume of unknown kind {volume}")
            os.chmod(place, 0o755)
            for name, (data, mode) in files.items():
                path = place / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                if group:  # as SetVolumeOwnership: the group may read
                    os.chown(path, 0, group)
                    mode |= 0o440
                os.chmod(path, mode)

    def from_secret(self, files: dict, name: str, how: dict) -> None:
        found = self.api("GET", f"{self.base}/secrets/{name}", ok=(404,))
        if found.get("code") == 404:
            raise RuntimeError(f'secret "{name}" not found')
        data = {k: base64.b64decode(v) for k, v in found.get("data", {}).items()}
        self.pick(files, data, how)

    def from_map(self, files: dict, name: str, how: dict) -> None:
        found = self.api("GET", f"{self.base}/configmaps/{name}", ok=(404,))
        if found.get("code") == 404:
            raise RuntimeError(f'configmap "{name}" not found')
        self.pick(files, {k: v.encode() for k, v in found.get("data", {}).items()}, how)

    @staticmethod
    def pick(files: dict, data: dict, how: dict) -> None:
        items = how.get("items") or [{"key": key, "path": key} for key in data]
        for item in items:
            files[item["path"]] = (data[item["key"]], item.get("mode", how.get("defaultMode", 0o644)))

    def token(self, how: dict) -> bytes:
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {
            "audiences": [how["audience"]] if how.get("audience") else [], "expirationSeconds": how.get("expirationSeconds", 3600),
            "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": self.pod["metadata"]["name"], "uid": self.uid}}}  # fmt: skip
        account = self.pod["spec"].get("serviceAccountName", "default")
        return self.api("POST", f"{self.base}/serviceaccounts/{account}/token", body)["status"]["token"].encode()

    def environment(self, container: dict) -> dict[str, str]:
        env: dict[str, str] = {}
        for source in container.get("envFrom", []):
            kind, ref = ("configmaps", source["configMapRef"]) if "configMapRef" in source else ("secrets", source["secretRef"])
            found = self.api("GET", f"{self.base}/{kind}/{ref['name']}", ok=(404,))
            if found.get("code") == 404:
                raise RuntimeError(f"CreateContainerConfigError: {kind} {ref['name']} not found")
            for key, value in found.get("data", {}).items():
                env[source.get("prefix", "") + key] = base64.b64decode(value).decode() if kind == "secrets" else value
        for item in container.get("env", []):
            if "valueFrom" in item:
                env[item["name"]] = self.value_from(item["valueFrom"], container)
            else:
                env[item["name"]] = expand(item.get("value", ""), env)
        return env

    def value_from(self, how: dict, container: dict) -> str:
        if "fieldRef" in how:
            path = how["fieldRef"]["fieldPath"]
            meta, spec = self.pod["metadata"], self.pod["spec"]
            match = re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path)
            if match:
                return meta.get(match[1], {}).get(match[2], "")
            return {
                "metadata.name": meta["name"], "metadata.namespace": meta["namespace"], "metadata.uid": self.uid,
                "spec.nodeName": spec.get("nodeName", ""), "spec.serviceAccountName": spec.get("serviceAccountName", ""),
                "status.podIP": self.ip, "status.podIPs": self.ip, "status.hostIP": "127.0.0.1",
            }[path]  # fmt: skip
        for kind, name in (("configMapKeyRef", "configmaps"), ("secretKeyRef", "secrets")):
            if kind in how:
                found = self.api("GET", f"{self.base}/{name}/{how[kind]['name']}")["data"][how[kind]["key"]]
                return base64.b64decode(found).decode() if name == "secrets" else found
        raise RuntimeError(f"valueFrom {how}")

    def container_spec(self, container: dict) -> dict:
        env = self.environment(container)
        full = {**IMAGE_ENV, "HOSTNAME": self.hostname, **self.kubelet.extra_env, **env}
        command = [expand(t, env) for t in container.get("command", [])] or ENTRYPOINT
        arguments = [expand(t, env) for t in container.get("args", [])]
        inner = container.get("securityContext", {})
        outer = self.pod["spec"].get("securityContext", {})
        mounts = [{"source": self.sources[m["name"]] + ("/" + m["subPath"] if m.get("subPath") else ""), "target": m["mountPath"], "readOnly": m.get("readOnly", False)} for m in container.get("volumeMounts", [])]
        return {
            "hostname": self.hostname, "root": str(self.folder / f"{container['name']}.root"), "mounts": mounts,
            "image": [*IMAGE_PATHS, str(PLACE / "pkg/tini/usr/bin")],
            "files": {"/etc/hosts": str(self.folder / "hosts"), "/etc/resolv.conf": str(self.folder / "resolv.conf")},
            "read_only_root": inner.get("readOnlyRootFilesystem", False), "cwd": container.get("workingDir", "/tmp"),
            "user": inner.get("runAsUser", outer.get("runAsUser", 0)), "group": inner.get("runAsGroup", outer.get("runAsGroup", 0)),
            "fs_group": outer.get("fsGroup"), "env": full, "command": [*command, *arguments],
        }  # fmt: skip

    def clean(self) -> None:
        for process, first in list(self.running.values()):
            self.kill(first, signal.SIGKILL)
        run("ip", "netns", "del", self.netns, check=False)
        shutil.rmtree(self.folder / "volumes", ignore_errors=True)


def expand(text: str, env: dict[str, str]) -> str:
    """$(NAME) as Kubernetes expands it; an unknown one stays as it is."""
    return re.sub(r"\$\((\w+)\)", lambda match: env.get(match[1], match[0]), text.replace("$$", "\0")).replace("\0", "$")


class Kubelet:
    def __init__(self, api: Api, nodes: list[str], state: Path, control: Path, extra_env: dict[str, str]) -> None:
        self.api, self.state, self.control, self.extra_env = api, state, control, extra_env
        control.mkdir(parents=True, exist_ok=True)
        self.nodes = {name: Node(api, name, control) for name in nodes}
        self.pods: dict[str, Pod] = {}
        self.known: dict[str, dict] = {}  # uid -> pod object, as the API says

    def start(self) -> None:
        for node in self.nodes.values():
            node.register()
            threading.Thread(target=node.beat, daemon=True).start()
        threading.Thread(target=self.api.watch, args=("/api/v1/pods", self.heard), daemon=True).start()

    def heard(self, kind: str, found: dict) -> None:
        if kind == "LIST":
            self.known = dict(found)
        elif kind == "DELETED":
            self.known.pop(found["metadata"]["uid"], None)
        elif kind in ("ADDED", "MODIFIED"):
            self.known[found["metadata"]["uid"]] = found
        self.sync()

    def sync(self) -> None:
        """Brings what runs in line with what is known; a node that is cut off knows nothing new."""
        for uid, pod in list(self.known.items()):
            node = self.nodes.get(pod["spec"].get("nodeName", ""))
            if node is None or node.cut:
                continue
            mine = self.pods.get(uid)
            if mine is None:
                if pod.get("status", {}).get("phase") in ("Succeeded", "Failed") and "deletionTimestamp" not in pod["metadata"]:
                    continue
                mine = self.pods[uid] = Pod(self, node, pod)
                mine.start()
            elif mine.killed and not mine.is_alive():
                mine = self.pods[uid] = Pod(self, node, pod)
                mine.lost = True
                mine.start()
            else:
                mine.update(pod)
        for uid, mine in self.pods.items():
            if uid not in self.known and not mine.deleted and not mine.node.cut:
                mine.gone()

    def obey(self) -> None:
        while True:
            for name, node in self.nodes.items():
                mine = [p for p in self.pods.values() if p.node is node and p.is_alive()]
                if node.is_("dead"):
                    for pod in mine:
                        if not pod.killed:
                            say(pod.key, "power cut")
                            with pod.changed:
                                pod.killed = True
                                pod.changed.notify_all()
                if node.is_("shutdown"):
                    for pod in mine:
                        if not pod.reason and pod.running:
                            with pod.changed:
                                pod.reason = ("Terminated", "Pod was terminated in response to imminent node shutdown.")
                                pod.changed.notify_all()
            self.sync()
            time.sleep(0.5)


def serve_logs(kubelet: Kubelet, cert: str, key: str) -> None:
    """The part of a kubelet's own API that `kubectl logs` needs."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urllib.parse.urlparse(self.path)
            query = urllib.parse.parse_qs(url.query)
            _, what, namespace, name, container = url.path.split("/")
            mine = [p for p in kubelet.pods.values() if p.key == f"{namespace}/{name}"]
            path = mine[-1].folder / f"{container}.log" if mine else None
            if what != "containerLogs" or not path or not path.exists():
                self.send_response(404)
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.end_headers()
            pod = mine[-1]
            with path.open("rb") as file:
                while True:
                    over = container not in pod.running
                    data = file.read()
                    if data:
                        self.wfile.write(data)
                        self.wfile.flush()
                    elif over or "follow" not in query:
                        break
                    else:
                        time.sleep(0.3)

        def log_message(self, *words: object) -> None:
            pass

    class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
        daemon_threads = True

    server = Server(("127.0.0.1", 10250), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", default="https://127.0.0.1:6443")
    parser.add_argument("--token", required=True)
    parser.add_argument("--ca", required=True)
    parser.add_argument("--cert", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--nodes", default="node-a,node-b")
    parser.add_argument("--state", default=str(PLACE / "state"))
    parser.add_argument("--env", action="append", default=[], help="NAME=VALUE that every container gets, as if of the image")
    options = parser.parse_args()
    api = Api(options.server, options.token, options.ca)
    state = Path(options.state)
    extra = dict(item.split("=", 1) for item in options.env)
    kubelet = Kubelet(api, options.nodes.split(","), state, state / "control", extra)
    kubelet.start()
    Dns(api.watch).start()
    threading.Thread(target=serve_logs, args=(kubelet, options.cert, options.key), daemon=True).start()

    def stop(*_: object) -> None:
        for pod in kubelet.pods.values():
            pod.clean()
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    kubelet.obey()


main()
