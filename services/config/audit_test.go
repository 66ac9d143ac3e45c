package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/platform/envconfig"
	"github.com/sluice-fhir/sluice/services/config"
)

const auditKey = "0123456789abcdef0123456789abcdef"

func TestAuditConfiguration(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(secret, []byte(auditKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for text, wrong := range map[string][]string{
		"":                                     nil,
		"AUDIT_LOG=":                           nil, // the default
		"AUDIT_LOG=stdout":                     nil,
		"AUDIT_LOG=/a AUDIT_SYNC=true":         nil,
		"AUDIT_KEY=" + auditKey:                nil,
		"AUDIT_KEY_FILE=" + secret:             nil,
		"AUDIT_KEY=hunter2":                    {"SLUICE_AUDIT_KEY"},
		"AUDIT_SYNC=true":                      {"SLUICE_AUDIT_SYNC"},
		"AUDIT_LOG=- AUDIT_SYNC=true":          {"SLUICE_AUDIT_SYNC"},
		"AUDIT_SYNC=true AUDIT_KEY=hunter2":    {"SLUICE_AUDIT_SYNC", "SLUICE_AUDIT_KEY"},
		"AUDIT_SYNC=maybe":                     {"SLUICE_AUDIT_SYNC"},
		"AUDIT_KEY=a AUDIT_KEY_FILE=" + secret: {"SLUICE_AUDIT_KEY"},
	} {
		var environ []string
		for entry := range strings.FieldsSeq(text) {
			environ = append(environ, "SLUICE_"+entry)
		}
		var section config.Audit
		err := envconfig.Load(environ, &section)
		if (err == nil) != (wrong == nil) {
			t.Errorf("%q: %v", text, err)
		}
		for _, name := range wrong {
			if err != nil && (!strings.Contains(err.Error(), name) || strings.Contains(err.Error(), "hunter2")) {
				t.Errorf("%q: %v, want an error that names %s and no value", text, err, name)
			}
		}
		if err == nil && strings.Contains(text, "AUDIT_KEY") && section.Key != auditKey {
			t.Errorf("%q: the key is %q", text, section.Key)
		}
		if err == nil && (text == "" || text == "AUDIT_LOG=") && section.Log != "stdout" {
			t.Errorf("%q: the log is %q", text, section.Log)
		}
	}
	if err := (config.Audit{}).Validate(); err == nil {
		t.Error("an empty log is accepted")
	}
}

// count adds up a counter over all labels.
func count(t *testing.T, registry *prometheus.Registry, name string) (sum float64) {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, metric := range family.GetMetric() {
			sum += metric.GetCounter().GetValue()
		}
	}
	return sum
}

func TestAuditOpen(t *testing.T) {
	registry := prometheus.NewRegistry()
	path := filepath.Join(t.TempDir(), "audit.ndjson")
	section := config.Audit{Log: path, Key: auditKey, Sync: true}
	log, err := section.Open("api", registry)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := log.Record(audit.Event{Action: audit.Denied, Outcome: audit.Refused, Reason: "no token"}); err != nil {
			t.Error(err)
		}
	}
	if err := log.Close(); err != nil {
		t.Error(err)
	}
	if log.Record(audit.Event{Action: audit.Denied, Outcome: audit.Refused}) == nil {
		t.Error("recorded in a closed log")
	}
	for name, want := range map[string]float64{"sluice_audit_events_total": 2, "sluice_audit_failures_total": 1} {
		if got := count(t, registry, name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	report, err := audit.Verify(audit.Proof{Key: []byte(auditKey)}, audit.Input{Name: path, Reader: file})
	if err != nil || report.Problem != nil || report.Chains[0].Process != "api" || report.Chains[0].Site == "" {
		t.Errorf("%v, %+v", err, report)
	}
	if _, err := section.Open("api", registry); err == nil || !strings.Contains(err.Error(), "metrics") {
		t.Errorf("two logs registered their metrics in one registry: %v", err)
	}
	section.Log = filepath.Dir(path)
	if _, err := section.Open("api", prometheus.NewRegistry()); err == nil || !strings.Contains(err.Error(), "SLUICE_AUDIT_LOG") {
		t.Errorf("a folder in place of a file: %v", err)
	}
}
