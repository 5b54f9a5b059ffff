"""The ConfigMaps of an API server: read, created, and changed by merge patches (RFC 7396) of one resource version."""

import json
import re

from tests.doubles.kube_api import KubeApi, status

MAPS = re.compile(r"/api/v1/namespaces/(?P<namespace>[^/]+)/configmaps(?:/(?P<name>[^/]+))?")
RIGHTS = frozenset({"get configmaps", "create configmaps", "patch configmaps"})


class ConfigMapApi(KubeApi):
    """`maps` by (namespace, name). Each of `meanwhile` is called once, before the next change is looked at."""

    def __init__(self, cluster, pki):
        super().__init__(cluster, pki)
        self.maps, self.meanwhile, self._version = {}, [], 100

    def put(self, namespace, name, data, **annotations):
        self._version += 1
        metadata = {"namespace": namespace, "name": name, "resourceVersion": str(self._version)}
        found = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
        metadata["annotations"] = annotations
        self.maps[namespace, name] = found
        return found

    def _object(self, method, path, headers, body, rights):
        asked = MAPS.fullmatch(path.partition("?")[0])
        if asked is None:
            return super()._object(method, path, headers, body, rights)
        verb = {"GET": "get", "POST": "create", "PATCH": "patch"}[method]
        if f"{verb} configmaps" not in rights:
            return 403, status(403, "Forbidden")
        namespace = asked["namespace"]
        if method == "GET":
            found = self.maps.get((namespace, asked["name"]))
            return (200, found) if found else (404, status(404, "NotFound"))
        for act in self.meanwhile[:1]:
            self.meanwhile.remove(act)
            act()
        given = json.loads(body)
        wanted = {"POST": "application/json", "PATCH": "application/merge-patch+json"}[method]
        if headers["Content-Type"] != wanted or "fieldManager=" not in path:
            return 415, status(415, "UnsupportedMediaType")
        return self._created(namespace, given) if method == "POST" else self._patched(namespace, asked["name"], given)

    def _created(self, namespace, given):
        name = given["metadata"]["name"]
        if (namespace, name) in self.maps:
            return 409, status(409, "AlreadyExists")
        return 201, self.put(namespace, name, given["data"], **given["metadata"]["annotations"])

    def _patched(self, namespace, name, given):
        found = self.maps.get((namespace, name))
        if found is None:
            return 404, status(404, "NotFound")
        if given["metadata"].get("resourceVersion") not in {None, found["metadata"]["resourceVersion"]}:
            return 409, status(409, "Conflict")
        annotations = {**found["metadata"]["annotations"], **given["metadata"]["annotations"]}
        return 200, self.put(namespace, name, {**found["data"], **given["data"]}, **annotations)
