package monitoringcheck

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"go.yaml.in/yaml/v3"
)

const (
	root       = "../../"
	monitoring = root + "k8s/monitoring/"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(name)
	must(t, err)
	return content
}

// metrics are the rows of the tables in docs/observability.md, which a test of services/e2e compares with what running
// services expose: the labels of each metric, of histograms those of their series.
func metrics(t *testing.T) map[string][]string {
	t.Helper()
	row := regexp.MustCompile("(?m)^\\| `(sluice_[a-z_]+)` \\| ([a-z]+) \\|([^|]*)\\|")
	known := map[string][]string{}
	for _, found := range row.FindAllStringSubmatch(string(read(t, root+"docs/observability.md")), -1) {
		name, labels := found[1], strings.FieldsFunc(found[3], func(r rune) bool { return strings.ContainsRune(" ,`", r) })
		if found[2] == "histogram" {
			known[name+"_bucket"] = append([]string{"le"}, labels...)
			known[name+"_sum"], known[name+"_count"] = labels, labels
			continue
		}
		known[name] = labels
	}
	if len(known) < 40 {
		t.Fatalf("only %d series are documented: the table is not found", len(known))
	}
	return known
}

// rules are the alert rules of alerts.yaml, as Prometheus reads them: what it does not know is an error.
func rules(t *testing.T) []rulefmt.Rule {
	t.Helper()
	groups, errs := rulefmt.Parse(read(t, monitoring+"alerts.yaml"), false, model.UTF8Validation, parserOf(t), slog.New(slog.DiscardHandler))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	var all []rulefmt.Rule
	for _, group := range groups.Groups {
		all = append(all, group.Rules...)
	}
	return all
}

// query is a query and where it stands.
type query struct{ where, text string }

// dashboardQueries are the queries of the dashboard's panels, with Grafana's own variable filled in.
func dashboardQueries(t *testing.T) []query {
	t.Helper()
	type target struct {
		Expr         string `json:"expr"`
		LegendFormat string `json:"legendFormat"`
	}
	var board struct {
		UID        string `json:"uid"`
		Templating struct {
			List []struct{ Name, Type, Query string } `json:"list"`
		} `json:"templating"`
		Panels []struct {
			ID      int    `json:"id"`
			Type    string `json:"type"`
			Title   string `json:"title"`
			GridPos struct{ H, W, X, Y int }
			Targets []target `json:"targets"`
		} `json:"panels"`
	}
	must(t, json.Unmarshal(read(t, monitoring+"dashboard.json"), &board))
	if board.UID == "" || len(board.Templating.List) != 1 || board.Templating.List[0].Name != "datasource" {
		t.Errorf("the dashboard has uid %q and variables %v", board.UID, board.Templating.List)
	}
	var queries []query
	ids := map[int]bool{}
	for _, panel := range board.Panels {
		if ids[panel.ID] || panel.GridPos.X+panel.GridPos.W > 24 {
			t.Errorf("panel %q has an id or a place that it should not have", panel.Title)
		}
		ids[panel.ID] = true
		if panel.Type != "row" && len(panel.Targets) == 0 {
			t.Errorf("panel %q asks for nothing", panel.Title)
		}
		for _, one := range panel.Targets {
			text := strings.ReplaceAll(one.Expr, "$__rate_interval", "2m")
			queries = append(queries, query{"panel " + panel.Title, text})
			for _, label := range regexp.MustCompile(`{{(\w+)}}`).FindAllStringSubmatch(one.LegendFormat, -1) {
				if !regexp.MustCompile(`by \([^)]*\b` + label[1] + `\b`).MatchString(one.Expr) {
					t.Errorf("panel %q: the legend's %s is no label of %s", panel.Title, label[1], one.Expr)
				}
			}
		}
	}
	return queries
}

// TestTheOperatorsRulesAreTheSame compares the PrometheusRule with the plain file, and what the component takes with what
// there is.
func TestTheOperatorsRulesAreTheSame(t *testing.T) {
	var plain, custom struct {
		Spec   any
		Groups any
		Kind   string
	}
	must(t, yaml.Unmarshal(read(t, monitoring+"alerts.yaml"), &plain))
	must(t, yaml.Unmarshal(read(t, monitoring+"prometheusrule.yaml"), &custom))
	a, err := json.Marshal(map[string]any{"groups": plain.Groups})
	must(t, err)
	b, err := json.Marshal(custom.Spec)
	must(t, err)
	if custom.Kind != "PrometheusRule" || string(a) != string(b) {
		t.Errorf("prometheusrule.yaml does not say what alerts.yaml says:\n%s\n%s", a, b)
	}
	var component struct {
		Kind               string
		Resources          []string
		ConfigMapGenerator []struct{ Files []string } `yaml:"configMapGenerator"`
	}
	must(t, yaml.Unmarshal(read(t, monitoring+"kustomization.yaml"), &component))
	if component.Kind != "Component" || !slices.Equal(component.Resources, []string{"prometheusrule.yaml"}) ||
		!slices.Equal(component.ConfigMapGenerator[0].Files, []string{"dashboard.json"}) {
		t.Errorf("the component: %+v", component)
	}
}

// TestEachAlertHasARunbook wants a runbook for each alert, which says what its reader sees, what it means and what to do,
// and a line in the list of alerts; and no runbook and no line without an alert.
func TestEachAlertHasARunbook(t *testing.T) {
	text := string(read(t, root+"docs/observability.md"))
	listed := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(Sluice\\w+)` \\|.*\\]\\(runbooks/([a-z-]+\\.md)\\) \\|$").FindAllStringSubmatch(text, -1) {
		listed[row[1]] = "docs/runbooks/" + row[2]
	}
	used := map[string]bool{}
	for i, rule := range rules(t) {
		runbook := rule.Annotations["runbook"]
		if i == 0 && rule.Alert != "SluiceNoForwardProgress" {
			t.Errorf("the first alert is %s", rule.Alert)
		}
		if listed[rule.Alert] != runbook {
			t.Errorf("%s has the runbook %q, and in docs/observability.md %q", rule.Alert, runbook, listed[rule.Alert])
		}
		delete(listed, rule.Alert)
		if severity := rule.Labels["severity"]; !slices.Contains([]string{"critical", "warning", "info"}, severity) {
			t.Errorf("%s has the severity %q", rule.Alert, severity)
		}
		if rule.Annotations["summary"] == "" || rule.Annotations["description"] == "" {
			t.Errorf("%s says nothing", rule.Alert)
		}
		book, err := os.ReadFile(root + runbook)
		if err != nil {
			t.Errorf("%s: %v", rule.Alert, err)
			continue
		}
		used[filepath.Base(runbook)] = true
		for _, part := range []string{"`" + rule.Alert + "`", "**What you see.**", "**What it means.**", "**What to do.**"} {
			if !strings.Contains(string(book), part) {
				t.Errorf("%s does not have %s", runbook, part)
			}
		}
	}
	if len(listed) != 0 {
		t.Errorf("listed and not there: %v", listed)
	}
	books, err := filepath.Glob(root + "docs/runbooks/*.md")
	must(t, err)
	for _, book := range books {
		if !used[filepath.Base(book)] && strings.Contains(string(read(t, book)), "**What you see.**") {
			t.Errorf("no alert leads to %s", book)
		}
	}
}

// TestRunbooksNameMetricsThatThereAre looks up what the runbooks tell their readers to look at.
func TestRunbooksNameMetricsThatThereAre(t *testing.T) {
	known := metrics(t)
	books, err := filepath.Glob(root + "docs/runbooks/*.md")
	must(t, err)
	for _, book := range books {
		for _, name := range regexp.MustCompile(`\bsluice_(worker|scheduler|api|auth|dependency|audit|tls|trace)_[a-z_]+`).
			FindAllString(string(read(t, book)), -1) {
			_, plain := known[name]
			_, histogram := known[name+"_bucket"]
			if !plain && !histogram {
				t.Errorf("%s: there is no %s", book, name)
			}
		}
	}
}
