package main

import (
	"path/filepath"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/services/config/configtest"
)

func TestNoSecretIsQuoted(t *testing.T) {
	configtest.QuotesNothing(t, configtest.Service{Config: settings{}, Run: run, Environ: []string{
		"SLUICE_REDIS_URL=" + testenv.Redis(t), "SLUICE_S3_ENDPOINT=http://127.0.0.1:1", "SLUICE_S3_ACCESS_KEY=a",
		"SLUICE_S3_SECRET_KEY=s", "SLUICE_AUDIT_LOG=" + filepath.Join(t.TempDir(), "audit.ndjson"),
	}})
}
