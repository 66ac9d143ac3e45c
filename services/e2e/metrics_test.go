package e2e

import (
	"bytes"
	"crypto/tls"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/sluice-fhir/sluice/pkg/testenv"
)

// documented is a row of the table of metrics in docs/observability.md, which tools/monitoringcheck reads too.
type documented struct {
	kind     string
	labels   []string // sorted
	services []string // sorted
}

var metricRow = regexp.MustCompile("(?m)^\\| `(sluice_[a-z_]+)` \\| ([a-z]+) \\|([^|]*)\\|([^|]*)\\|")

func documentedMetrics(t *testing.T) map[string]documented {
	t.Helper()
	text, err := os.ReadFile("../../docs/observability.md")
	must(t, err)
	rows := map[string]documented{}
	list := func(cell string) []string {
		words := strings.FieldsFunc(cell, func(r rune) bool { return strings.ContainsRune(" ,`", r) })
		slices.Sort(words)
		return words
	}
	for _, row := range metricRow.FindAllStringSubmatch(string(text), -1) {
		name, services := row[1], list(row[4])
		if slices.Equal(services, []string{"all"}) {
			services = []string{"api", "auth", "scheduler", "worker"}
		}
		if _, twice := rows[name]; twice {
			t.Errorf("%s is documented twice", name)
		}
		rows[name] = documented{kind: row[2], labels: list(row[3]), services: services}
	}
	return rows
}

// TestTheMetricsAreTheDocumentedOnes runs everything once and compares what the services expose with the table, both ways:
// name, type, labels, and which service has it.
func TestTheMetricsAreTheDocumentedOnes(t *testing.T) {
	data := generated(t, 10)
	database := loaded(t, data)
	authority := testenv.NewAuthority(t)
	cert, key := authority.Issue(time.Now().Add(time.Hour), "127.0.0.1").Files(t, t.TempDir())
	collector := testenv.NewCollector(t)
	private := []string{
		"SLUICE_PRIVATE_TLS_CERT_FILE=" + cert, "SLUICE_PRIVATE_TLS_KEY_FILE=" + key, "SLUICE_TRACE_ENDPOINT=" + collector.URL,
	}
	s := deploy(t, setup{
		data: data, database: database, directory: database, api: private, worker: private,
		scheduler: append([]string{"SLUICE_SURVEY_EVERY=200ms"}, private...),
	})
	worker := s.startWorker()
	auth := s.start("auth", append([]string{
		"SLUICE_REDIS_URL=" + testenv.Redis(t), "SLUICE_AUTH_ADDR=127.0.0.1:0", "SLUICE_AUTH_TOKEN_URL=" + authURL,
		"SLUICE_BASE_URL=" + publicBase, "SLUICE_AUTH_KEY_SECRET=a secret of 32 bytes and some more",
	}, private...)...)
	status := s.kickoff("all", "")
	s.wait(status, time.Minute)
	resp, err := http.PostForm("http://"+auth.ready()["public"]+"/auth/token", url.Values{"grant_type": {"nonsense"}})
	must(t, err)
	_ = resp.Body.Close()

	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: authority.Pool()},
	}}
	scrape := func(p *process) map[string]*dto.MetricFamily {
		t.Helper()
		resp, err := client.Get("https://" + p.ready()["private"] + "/metrics")
		must(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		must(t, err)
		parser := expfmt.NewTextParser(model.UTF8Validation)
		families, err := parser.TextToMetricFamilies(bytes.NewReader(body))
		must(t, err)
		maps.DeleteFunc(families, func(name string, _ *dto.MetricFamily) bool { return !strings.HasPrefix(name, "sluice_") })
		return families
	}
	var scheduler *process
	for _, p := range s.processes {
		if p.name == "scheduler" {
			scheduler = p
		}
	}
	eventually(t, 30*time.Second, "the survey counts the job", func() bool {
		for _, metric := range scrape(scheduler)["sluice_scheduler_jobs"].GetMetric() {
			if metric.GetLabel()[0].GetValue() == "completed" && metric.GetGauge().GetValue() == 1 {
				return true
			}
		}
		return false
	})
	s.request(http.MethodDelete, status, "everything", nil) // so that the scheduler records a purge
	eventually(t, 30*time.Second, "the job is purged", func() bool {
		_, purged := scheduler.find(func(e map[string]any) bool { return e["msg"] == "job purged" })
		return purged
	})

	exposed := map[string]documented{}
	for name, p := range map[string]*process{"api": s.api, "worker": worker, "scheduler": scheduler, "auth": auth} {
		for metric, family := range scrape(p) {
			row := exposed[metric]
			row.kind = strings.ToLower(family.GetType().String())
			for _, sample := range family.GetMetric() {
				for _, label := range sample.GetLabel() {
					if !slices.Contains(row.labels, label.GetName()) {
						row.labels = append(row.labels, label.GetName())
					}
				}
			}
			slices.Sort(row.labels)
			row.services = append(row.services, name)
			slices.Sort(row.services)
			exposed[metric] = row
		}
	}
	wanted := documentedMetrics(t)
	for name, got := range exposed {
		want, known := wanted[name]
		if !known {
			t.Errorf("%s is exposed and not documented: %+v", name, got)
			continue
		}
		if want.kind != got.kind || !slices.Equal(want.labels, got.labels) || !slices.Equal(want.services, got.services) {
			t.Errorf("%s is documented as %+v and is %+v", name, want, got)
		}
	}
	for name := range wanted {
		if _, there := exposed[name]; !there {
			t.Errorf("%s is documented and not exposed", name)
		}
	}
}
