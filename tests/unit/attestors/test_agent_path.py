"""Agent path templates: fields become parts of one segment and never more (S32)."""

import pytest

from attestors.agent_path import AgentPathTemplate
from spiffe_core.errors import ConfigError, Forbidden


def parse(text, **over):
    return AgentPathTemplate.parse(text, plugin="x509pop", known={"Fingerprint", "San.rack"}.__contains__, **over)


def rendered(text, **values):
    return parse(text).render(lambda name: values.get(name.replace(".", "_"), ""))


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/{{ .PluginName }}/{{ .Fingerprint }}", "/spire/agent/x509pop/ab12"),
        ("/{{.PluginName}}/{{.Fingerprint}}", "/spire/agent/x509pop/ab12"),
        ("/{{- .PluginName -}}/{{- .Fingerprint -}}", "/spire/agent/x509pop/ab12"),
        ("/x509pop/rack-{{ .San.rack }}/{{ .Fingerprint }}.n", "/spire/agent/x509pop/rack-7/ab12.n"),
        ("/metal/{{ .Fingerprint }}", "/spire/agent/metal/ab12"),
    ],
)
def test_fields_are_filled_in(text, path):
    assert rendered(text, Fingerprint="ab12", San_rack="7") == path


@pytest.mark.parametrize(
    "value", ["", "a/b", "../join_token/x", "..", ".", "a b", "a\n", "é", "%2e", "a" * 256, "{{ .x }}", "a\0", "a:b"]
)
def test_a_value_is_a_part_of_one_segment_or_refused(value):
    """S32, CVE-2021-27099."""
    with pytest.raises(Forbidden, match=r"Fingerprint|dot segment"):
        rendered("/x509pop/{{ .Fingerprint }}", Fingerprint=value)


def test_values_cannot_join_to_a_dot_segment():
    """S32: each part is harmless, the segment is not."""
    with pytest.raises(Forbidden, match="dot segment"):
        rendered("/x509pop/{{ .Fingerprint }}{{ .San.rack }}", Fingerprint=".", San_rack=".")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "begin with"),
        ("x509pop/{{ .Fingerprint }}", "begin with"),
        ("/" + "a" * 1100, "at most"),
        ("/x509pop/{{ .Nothing }}", "no field .Nothing"),
        ("/x509pop/node", "differs between nodes"),
        ("/{{ .PluginName }}/node", "differs between nodes"),
        ("/{{ .Fingerprint }}/node", "first segment may not depend"),
        ("/a{{ .Fingerprint }}/node", "first segment may not depend"),
        ("/x509pop{{ .Fingerprint }}", "first segment may not depend"),
        ("/x509pop//{{ .Fingerprint }}", "none is empty"),
        ("/x509pop/{{ .Fingerprint }}/", "none is empty"),
        ("/x509pop/../{{ .Fingerprint }}", "none is empty"),
        ("/x509pop/a b/{{ .Fingerprint }}", "segments are made of"),
        ("/x509pop/{{ .Fingerprint | upper }}", "no functions"),
        ("/x509pop/{{ .Fingerprint }}{{", "no functions"),
        ("/x509pop/{{ if .Fingerprint }}x{{ end }}", "no functions"),
        ("/join_token/{{ .Fingerprint }}", "belongs to the attestor"),
    ],
)
def test_a_template_is_checked_when_it_is_configured(text, rule):
    with pytest.raises(ConfigError, match="agent_path_template.*" + rule.replace(".", r"\.")):
        parse(text, others=frozenset({"join_token"}))
