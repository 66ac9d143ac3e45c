package config_test

import (
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/platform/envconfig"
	"github.com/sluice-fhir/sluice/services/config"
)

func TestTraceSettingsAreChecked(t *testing.T) {
	const secret = "hunter2"
	for environ, want := range map[string]string{
		"":                                     "",
		"TRACE_ENDPOINT=http://collector:4318": "",
		"TRACE_ENDPOINT=https://collector:4318/a/b TRACE_RATIO=0.1 TRACE_HEADERS=Authorization=Basic=,X-A=b": "",
		"TRACE_ENDPOINT=collector:4318":                       "SLUICE_TRACE_ENDPOINT",
		"TRACE_ENDPOINT=http://u:" + secret + "@collector":    "SLUICE_TRACE_ENDPOINT",
		"TRACE_ENDPOINT=http://collector/v1/traces?a=b":       "SLUICE_TRACE_ENDPOINT",
		"TRACE_RATIO=1.1":                                     "SLUICE_TRACE_RATIO",
		"TRACE_RATIO=-0.1":                                    "SLUICE_TRACE_RATIO",
		"TRACE_RATIO=NaN":                                     "SLUICE_TRACE_RATIO",
		"TRACE_RATIO=often":                                   "SLUICE_TRACE_RATIO",
		"TRACE_HEADERS=" + secret:                             "SLUICE_TRACE_HEADERS",
		"TRACE_HEADERS=Authorization=" + secret + "\r\nX-A:b": "SLUICE_TRACE_HEADERS",
	} {
		var given []string
		for entry := range strings.SplitSeq(environ, " ") {
			if entry != "" {
				given = append(given, "SLUICE_"+entry)
			}
		}
		var cfg struct{ config.Common }
		switch err := envconfig.Load(given, &cfg); {
		case want == "" && err != nil:
			t.Errorf("%q: %v", environ, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%q: %v, want %s", environ, err, want)
		case err != nil && strings.Contains(err.Error(), secret):
			t.Errorf("%q quotes the secret: %v", environ, err)
		}
	}
}
