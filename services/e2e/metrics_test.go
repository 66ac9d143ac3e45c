package e2e

import (
	"bytes"
	"crypto/tls"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/services/e2e/check"
)

var metricName = regexp.MustCompile(`\bsluice_[a-z_]+`)

// TestAlertsAndDashboardUseExposedMetrics runs every service once. Each metric that an alert rule or a panel of the
// dashboard uses has to be exposed by one of them.
func TestAlertsAndDashboardUseExposedMetrics(t *testing.T) {
	t.Parallel()
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
	check.Must(t, err)
	_ = resp.Body.Close()

	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: authority.Pool()},
	}}
	scrape := func(p *service) map[string]*dto.MetricFamily {
		t.Helper()
		resp, err := client.Get("https://" + p.ready()["private"] + "/metrics")
		check.Must(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		check.Must(t, err)
		parser := expfmt.NewTextParser(model.UTF8Validation)
		families, err := parser.TextToMetricFamilies(bytes.NewReader(body))
		check.Must(t, err)
		return families
	}
	var scheduler *service
	for _, p := range s.processes {
		if p.Name() == "scheduler" {
			scheduler = p
		}
	}
	check.Eventually(t, 30*time.Second, "the survey counts the job", func() bool {
		for _, metric := range scrape(scheduler)["sluice_scheduler_jobs"].GetMetric() {
			if metric.GetLabel()[0].GetValue() == "completed" && metric.GetGauge().GetValue() == 1 {
				return true
			}
		}
		return false
	})
	s.request(http.MethodDelete, status, "everything", nil) // so that the scheduler records a purge
	check.Eventually(t, 30*time.Second, "the job is purged", func() bool {
		_, purged := scheduler.Find(func(e map[string]any) bool { return e["msg"] == "job purged" })
		return purged
	})

	exposed := map[string]bool{}
	for _, p := range []*service{s.api, worker, scheduler, auth} {
		for name, family := range scrape(p) {
			exposed[name] = true
			if family.GetType() == dto.MetricType_HISTOGRAM {
				exposed[name+"_bucket"], exposed[name+"_sum"], exposed[name+"_count"] = true, true, true
			}
		}
	}
	for _, file := range []string{"alerts.yaml", "dashboard.json"} {
		text, err := os.ReadFile("../../k8s/monitoring/" + file)
		check.Must(t, err)
		names := metricName.FindAllString(string(text), -1)
		if len(names) == 0 {
			t.Errorf("%s uses no metric", file)
		}
		for _, name := range names {
			if !exposed[name] {
				t.Errorf("%s uses %s, which no service exposes", file, name)
			}
		}
	}
}
