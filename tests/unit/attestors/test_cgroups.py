"""Which container a process is in: real-shaped control groups and mounts, and what must not be believed."""

import pytest

from attestors.cgroups import Place, container_of
from spiffe_core.errors import PreconditionFailed

ID = "9bca8d63d5fa610783847915bcff0ecac1273e5b4bed3f6fa1b07350e0135961"
OTHER = "3b2f7e7e25b8b0ab2e7d5ad6a3ba7cfb1f41cf9a0e0b6cf6d1c3a5ff7d6b2c11"
NODE = "6469646e742065787065637420616e796f6e6520746f20726561642074686973"[:64]
POD = "2c48913c-b29f-11e7-9350-020968147796"
DASHED, UNDERSCORED = POD, POD.replace("-", "_")
USERS = "/user.slice/user-1000.slice/user@1000.service"
IN_POD, ALONE = Place(ID, POD), Place(ID)
LIBPOD, ROOTLESS = Place(ID, podman=True), Place(ID, podman=True, made_by=1000)


def v1(path):
    """All hierarchies of a cgroup v1 machine."""
    names = ["name=systemd", "cpu,cpuacct", "memory", "pids", "devices"]
    return "\n".join(f"{number}:{name}:{path}" for number, name in enumerate(names, 1)) + "\n0::/\n"


CGROUPS = {
    "v1 cgroupfs burstable": (v1(f"/kubepods/burstable/pod{DASHED}/{ID}"), IN_POD),
    "v1 cgroupfs besteffort": (v1(f"/kubepods/besteffort/pod{DASHED}/{ID}"), IN_POD),
    "v1 cgroupfs guaranteed": (v1(f"/kubepods/pod{DASHED}/{ID}"), IN_POD),
    "v1 systemd containerd": (
        v1(f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNDERSCORED}.slice/cri-containerd-{ID}.scope"),
        IN_POD,
    ),
    "v1 systemd docker": (
        v1(f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UNDERSCORED}.slice/docker-{ID}.scope"),
        IN_POD,
    ),
    "v1 systemd CRI-O": (v1(f"/kubepods.slice/kubepods-pod{UNDERSCORED}.slice/crio-{ID}.scope"), IN_POD),
    "v1 colon form": (v1(f"/system.slice/containerd.service/kubepods-besteffort-pod{UNDERSCORED}.slice:cri-containerd:{ID}"), IN_POD),
    "v1 colon form at the root": (v1(f"/kubepods-besteffort-pod{UNDERSCORED}.slice:cri-containerd:{ID}"), IN_POD),
    "v2 systemd containerd": (
        f"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UNDERSCORED}.slice/cri-containerd-{ID}.scope",
        IN_POD,
    ),
    "v2 systemd CRI-O": (f"0::/kubepods.slice/kubepods-pod{UNDERSCORED}.slice/crio-{ID}.scope", IN_POD),
    "v2 systemd CRI-O with its own child": (
        f"0::/kubepods.slice/kubepods-pod{UNDERSCORED}.slice/crio-{ID}.scope/container",
        IN_POD,
    ),
    "v2 cgroupfs": (f"0::/kubepods/burstable/pod{DASHED}/{ID}", IN_POD),
    "v2 private namespace": (
        f"0::/../../kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{UNDERSCORED}.slice/cri-containerd-{ID}.scope",
        IN_POD,
    ),
    "v2 private namespace, siblings": (f"0::/../cri-containerd-{ID}.scope", ALONE),
    "v2 with an init scope": (f"0::/kubepods/pod{DASHED}/{ID}/init.scope", IN_POD),
    "hybrid": (f"1:name=systemd:/kubepods/pod{DASHED}/{ID}\n0::/\n", IN_POD),
    "kind v1": (v1(f"/docker/{NODE}/kubepods/besteffort/pod{DASHED}/{ID}"), IN_POD),
    "kind, the second line a node's": (
        f"5:pids:/docker/{NODE}/kubepods/besteffort/pod{DASHED}/{ID}\n0::/docker/{NODE}/system.slice/containerd.service\n",
        IN_POD,
    ),
    "kind v2": (
        f"0::/system.slice/docker-{NODE}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{UNDERSCORED}.slice/cri-containerd-{ID}.scope",
        IN_POD,
    ),
    "k3s": (f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNDERSCORED}.slice/cri-containerd-{ID}.scope", IN_POD),
    "k3d, a node in Docker": (f"0::/docker/{NODE}/kubepods/burstable/pod{DASHED}/{ID}", IN_POD),
    "minikube with the Docker driver": (
        v1(f"/docker/{NODE}/kubepods/besteffort/pod{DASHED}/{ID}"),
        IN_POD,
    ),
    "EKS": (f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNDERSCORED}.slice/cri-containerd-{ID}.scope", IN_POD),
    "GKE, containerd v1": (v1(f"/kubepods/burstable/pod{DASHED}/{ID}"), IN_POD),
    "AKS": (f"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UNDERSCORED}.slice/cri-containerd-{ID}.scope", IN_POD),
    "OpenShift": (f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNDERSCORED}.slice/crio-{ID}.scope", IN_POD),
    "a custom cgroup root": (v1(f"/custom/kubepods/burstable/pod{DASHED}/{ID}"), IN_POD),
    "an upper-case UID": (v1(f"/kubepods/pod{DASHED.upper()}/{ID}"), IN_POD),
    "CRI-O without a pod": (f"0::/system.slice/crio-{ID}.scope", ALONE),
    "Docker v1": (v1(f"/docker/{ID}"), ALONE),
    "Docker v1 with systemd": (v1(f"/system.slice/docker-{ID}.scope"), ALONE),
    "Docker v2": (f"0::/system.slice/docker-{ID}.scope", ALONE),
    "Docker v2 cgroupfs": (f"0::/docker/{ID}", ALONE),
    "Docker with a parent of its own": (v1(f"/my-parent/{ID}"), ALONE),
    "Docker rootless": (f"0::{USERS}/user.slice/docker-{ID}.scope", Place(ID, made_by=1000)),
    "ECS": (v1(f"/ecs/task-name/0f9a0a52b6934c1f/{ID}"), ALONE),
    "Podman": (f"0::/machine.slice/libpod-{ID}.scope", LIBPOD),
    "Podman with its own child": (f"0::/machine.slice/libpod-{ID}.scope/container", LIBPOD),
    "Podman cgroupfs": (v1(f"/libpod_parent/libpod-{ID}"), LIBPOD),
    "Podman in a unit of its own (Quadlet)": (f"0::/system.slice/web.service/libpod-payload-{ID}", LIBPOD),
    "Podman of old": (v1(f"/machine.slice/libpod/{ID}"), LIBPOD),
    "Podman rootless": (f"0::{USERS}/user.slice/libpod-{ID}.scope", ROOTLESS),
    "Podman rootless with its own child": (f"0::{USERS}/user.slice/libpod-{ID}.scope/container", ROOTLESS),
    "Podman rootless, hybrid": (f"4:memory:/user.slice\n1:name=systemd:/user.slice/user-1000.slice/session-2.scope\n0::{USERS}/user.slice/libpod-{ID}.scope", ROOTLESS),
    "Podman rootless in a pod": (f"0::{USERS}/user.slice/user-libpod_pod_{OTHER}.slice/libpod-{ID}.scope/container", ROOTLESS),
    "Podman rootless in a unit of its own (Quadlet)": (f"0::{USERS}/app.slice/web.service/libpod-payload-{ID}", ROOTLESS),
    "Podman rootless with a parent of its own": (f"0::{USERS}/app.slice/shop.slice/libpod-{ID}.scope", ROOTLESS),
    "Podman rootless without systemd": (f"0::{USERS}/app.slice/shell.scope/user.slice/libpod-{ID}", ROOTLESS),
    "Podman rootless, seen from a sibling namespace": (f"0::/../../../user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope", ROOTLESS),
    "Podman rootless without control groups": (f"0::{USERS}/app.slice/shell.scope", None),
    "who watches a container of Podman's": (f"0::/machine.slice/libpod-conmon-{ID}.scope", None),
    "who watches a rootless container": (f"0::{USERS}/user.slice/libpod-conmon-{ID}.scope", None),
    "who watches a container of CRI-O's": (f"0::/kubepods.slice/kubepods-pod{UNDERSCORED}.slice/crio-conmon-{ID}.scope", None),
    "root's own slice": (f"0::/user.slice/user-0.slice/user@0.service/user.slice/libpod-{ID}.scope", LIBPOD),
    "kind on a user's Podman": (f"0::{USERS}/user.slice/libpod-{NODE}.scope/kubelet.slice/kubelet-kubepods-pod{UNDERSCORED}.slice/cri-containerd-{ID}.scope", Place(ID, POD, made_by=1000)),
    "Podman in a pod": (f"0::/machine.slice/machine-libpod_pod_{OTHER}.slice/libpod-{ID}.scope", LIBPOD),
    "a login session": (v1("/user.slice/user-1000.slice/session-3.scope"), None),
    "a service": ("0::/system.slice/nginx.service\n", None),
    "the root": ("0::/\n", None),
    "nothing": ("", None),
    "no lines of the kernel's": ("garbage\nmore: garbage", None),
    "63 digits": (f"0::/docker/{ID[:63]}", None),
    "65 digits": (f"0::/docker/{ID}a", None),
    "upper-case digits": (f"0::/docker/{ID.upper()}", None),
    "a UUID that is none": (f"0::/kubepods/pod{POD[:-1]}/{ID}", ALONE),
}  # fmt: skip


@pytest.mark.parametrize("case", CGROUPS)
def test_a_real_shaped_control_group_names_its_container(case):
    text, expected = CGROUPS[case]
    assert container_of(text) == expected


def test_there_are_enough_of_them():
    """Issue 4, item 3: a corpus of at least 40 shapes."""
    assert len(CGROUPS) >= 40


FORGED = {
    "below its own group": (f"0::/kubepods/pod{DASHED}/{ID}/kubepods/pod{DASHED.replace('2c', 'ff')}/{OTHER}", IN_POD),
    "below its own container": (f"0::/docker/{ID}/docker/{OTHER}", ALONE),
    "a pod below a container": (f"0::/system.slice/docker-{ID}.scope/x/{OTHER}", ALONE),
    "a user's slice below its own group": (
        f"0::/machine.slice/libpod-{ID}.scope{USERS}/libpod-{OTHER}.scope",
        LIBPOD,
    ),
    "root's slice below a user's": (f"0::{USERS}/user-0.slice/user@0.service/libpod-{ID}.scope", ROOTLESS),
    "the system's Docker below a user's slice": (f"0::{USERS}/system.slice/docker-{ID}.scope", Place(ID, made_by=1000)),
    "a pod below a user's slice": (f"0::{USERS}/kubepods/pod{DASHED}/{ID}", Place(ID, POD, made_by=1000)),
}


MADE_BY_USER = {
    "a pod's group": (f"0::{USERS}/kubepods/pod{DASHED}/{ID}", Place(ID, POD, made_by=1000)),
    "a Docker container's": (f"0::{USERS}/app.slice/docker-{ID}.scope", Place(ID, made_by=1000)),
    "a second line for Python": (f"0::{USERS}/x\u20280::/docker-{ID}.scope", Place(ID, made_by=1000)),
    "a form feed": (f"0::{USERS}/x\x0c0::/kubepods/pod{DASHED}/{ID}", Place(ID, POD, made_by=1000)),
    "root's own manager": (f"0::/user.slice/user-0.slice/user@0.service/docker-{ID}.scope", ALONE),
    "a login session, which is root's": (f"0::/user.slice/user-1000.slice/session-3.scope/docker-{ID}.scope", ALONE),
}


@pytest.mark.parametrize("case", MADE_BY_USER)
def test_what_lies_in_a_users_own_control_group_was_named_by_that_user(case):
    """S19's kind: systemd lets every user make control groups below user@UID.service and call them what he likes."""
    text, expected = MADE_BY_USER[case]
    assert container_of(text) == expected


@pytest.mark.parametrize("case", FORGED)
def test_a_container_cannot_name_itself_another_below_its_own_group(case):
    """S19's kind: whoever may write to its control group makes children, never parents; a user's stay the user's."""
    text, expected = FORGED[case]
    assert container_of(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        f"1:cpu:/kubepods/pod{DASHED}/{ID}\n2:memory:/kubepods/pod{DASHED}/{OTHER}",
        f"1:cpu:/kubepods/pod{DASHED}/{ID}\n2:memory:/kubepods/pod{DASHED.replace('2c', 'ff')}/{ID}",
        f"1:cpu:/docker/{ID}\n2:memory:/docker/{OTHER}",
    ],
)
def test_lines_that_contradict_each_other_are_refused(text):
    with pytest.raises(PreconditionFailed, match="several containers"):
        container_of(text)


def test_absurd_input_is_refused_quickly():
    for text in ("0::/a\n" * 10_000, "0::/" + "a" * 10_000):
        with pytest.raises(PreconditionFailed, match="cannot be read"):
            container_of(text)
