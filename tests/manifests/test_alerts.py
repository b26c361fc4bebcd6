"""The alerts and the dashboard: they name what there is, fire when they should, and tell what to do."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from manifest_parts import MANIFESTS, ROOT, alerts, dashboard, rule_groups, rules, tool

from taskmem.config import load_profile

HERE = Path(__file__).parent
CASES = HERE / "alerts"
RUNBOOK = "https://github.com/taskmem/taskmem/blob/main/docs/operations.md"
FIRING = re.compile(r'ALERTS\{alertname="(\w+)", alertstate="firing"')
# what stands in PromQL besides metrics
FUNCTIONS = {
    *("absent", "avg", "histogram_quantile", "increase", "label_replace", "max", "min", "rate", "sum", "time"),
    *("and", "by", "or", "on", "unless"),
}


def metrics() -> set[str]:
    """The series that there are: those of metrics.yaml and what the recording rules make of them."""
    known = yaml.load((HERE / "metrics.yaml").read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    found = {rule["record"] for rule in rules() if "record" in rule}
    for group in known.values():
        for name, labels in group.items():
            found |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if labels == "histogram" else {name}
    return found


def named(expression: str) -> set[str]:
    """The metrics that a PromQL expression names."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}", "", bare)
    bare = re.sub(r"\[[^\]]*\]", "", bare)
    bare = re.sub(r"\bby \([^)]*\)", "", bare)
    return set(re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*", bare)) - FUNCTIONS


def expressions() -> list[str]:
    targets = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]
    return [*(rule["expr"] for rule in rules()), *targets]


def anchors(page: str) -> set[str]:
    """The anchors that a page's headings get on the web."""
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_an_expression_s_metrics_are_found() -> None:
    text = 'sum by (le, pod) (rate(a_total{x="b_c"}[5m])) / label_replace(max(d:e), "f", "g", "", "") > 2 * 3600'
    assert named(text) == {"a_total", "d:e"}


def test_alerts_and_dashboard_name_only_metrics_that_there_are() -> None:
    seen = expressions()
    assert len(seen) > 60
    for expression in seen:
        assert named(expression) <= metrics(), expression


def test_the_dashboard_shows_every_metric_of_ours() -> None:
    known = yaml.load((HERE / "metrics.yaml").read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    shown = json.dumps(dashboard())
    through_rules = " ".join(rule["expr"] for rule in rules() if rule.get("record", "") in shown)
    for group in ("agent", "gateway", "services", "nights"):
        for name in known[group]:
            assert name in shown or name in through_rules, name


def test_every_panel_asks_something_and_has_a_place_of_its_own() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert taken.isdisjoint(cells)
        assert at["x"] + at["w"] <= 24
        taken |= cells
        assert panel["type"] == "row" or panel["targets"]


def test_an_alert_s_name_is_its_own() -> None:
    names = [alert["alert"] for alert in alerts()]
    assert len(set(names)) == len(names) == 20


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_says_how_bad_it_is_what_it_means_and_where_to_read_on(alert: dict) -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert alert["annotations"]["summary"]
    assert alert["annotations"]["description"]
    link, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert link == RUNBOOK
    assert anchor == alert["alert"].lower()
    assert anchor in anchors(page)


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_s_words_use_only_labels_that_it_has(alert: dict) -> None:
    cases = "".join(path.read_text(encoding="utf-8") for path in CASES.glob("*.yaml"))
    labels = re.findall(rf'labels: \'ALERTS\{{alertname="{alert["alert"]}", (.*?)\}}\'', cases)
    for text in alert["annotations"].values():
        for inside in re.findall(r"\{\{(.*?)\}\}", text):
            assert re.fullmatch(r" (\$labels\.\w+|\$value|\$value \| humanize(Duration|Percentage)?) ", inside), inside
        for label in re.findall(r"\$labels\.(\w+)", text):
            assert labels
            assert all(f'{label}="' in found for found in labels)


def test_every_alert_is_seen_firing_and_not_firing() -> None:
    fires, rests = set(), set()
    for path in CASES.glob("*.yaml"):
        for case in yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)["tests"]:
            for check in case["promql_expr_test"]:
                names = set(FIRING.findall(check["expr"]))
                if check["exp_samples"]:
                    assert all(names <= set(FIRING.findall(sample["labels"])) for sample in check["exp_samples"])
                    fires |= names
                else:
                    rests |= names
    assert fires == {alert["alert"] for alert in alerts()}
    assert rests == fires


def test_the_judge_s_bound_is_the_one_at_which_gate_and_stages_refuse() -> None:
    (alert,) = [alert for alert in alerts() if alert["alert"] == "TaskmemJudgeErrors"]
    profile = load_profile("qwen3-vl-30b")
    bound = float(alert["expr"].rpartition(">")[2])
    assert bound == profile.gate.unscored == profile.calls.failed_share


def test_a_segment_falls_behind_when_it_takes_longer_than_it_is() -> None:
    (alert,) = [alert for alert in alerts() if alert["alert"] == "TaskmemSegmentsFallBehind"]
    assert float(alert["expr"].rpartition(">")[2]) == load_profile("qwen3-vl-30b").video.segment_seconds


@pytest.fixture
def checked(tmp_path: Path) -> Path:
    """A folder with the rules as Prometheus reads them, and the cases."""
    text = yaml.safe_dump({"groups": rule_groups()})
    (tmp_path / "rules.yaml").write_text(text, encoding="utf-8")
    for path in CASES.glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    return tmp_path


def promtool(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([tool("promtool"), *words], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.system
def test_prometheus_takes_the_rules(checked: Path) -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", "rules.yaml", folder=checked)
    assert done.returncode == 0, done.stderr
    assert f"{len(rules())} rules found" in done.stdout


@pytest.mark.system
def test_prometheus_understands_what_the_dashboard_asks(tmp_path: Path) -> None:
    asked = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", [])]
    expressions = [text.replace("$namespace", "taskmem") for text in asked]
    as_rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(expressions)]
    (tmp_path / "asked.yaml").write_text(
        yaml.safe_dump({"groups": [{"name": "d", "rules": as_rules}]}), encoding="utf-8"
    )
    done = promtool("check", "rules", "asked.yaml", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{len(asked)} rules found" in done.stdout


@pytest.mark.system
@pytest.mark.parametrize("cases", sorted(path.name for path in CASES.glob("*.yaml")))
def test_the_alerts_fire_when_they_should_and_only_then(cases: str, checked: Path) -> None:
    done = promtool("test", "rules", cases, folder=checked)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.system
def test_the_cases_notice_an_alert_that_never_fires(checked: Path) -> None:
    text = (checked / "rules.yaml").read_text(encoding="utf-8")
    assert "> 900" in text
    (checked / "rules.yaml").write_text(text.replace("> 900", "> 9000000"), encoding="utf-8")
    done = promtool("test", "rules", "serving.yaml", folder=checked)
    assert done.returncode != 0
    assert "TaskmemFeedbackLag" in done.stdout + done.stderr


def test_grafana_finds_the_dashboard() -> None:
    text = (MANIFESTS / "monitoring" / "kustomization.yaml").read_text(encoding="utf-8")
    (generated,) = yaml.load(text, Loader=yaml.CSafeLoader)["configMapGenerator"]
    assert generated["files"] == ["taskmem.json=dashboard.json"]
    assert generated["options"]["labels"] == {"grafana_dashboard": "1"}
