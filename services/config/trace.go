package config

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/http/httpguts"

	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
)

// Trace configures the export of spans (docs/observability.md).
type Trace struct {
	// OTLP collector, http(s)://host:port; none: no traces: docs/observability.md
	Endpoint string  `env:"TRACE_ENDPOINT"`
	Headers  string  `env:"TRACE_HEADERS"`              // secret; headers for the collector, NAME=VALUE,...
	Ratio    float64 `env:"TRACE_RATIO" envDefault:"1"` // share of the jobs that are traced
}

// tracesPath is the OTLP path for an endpoint without one.
const tracesPath = "/v1/traces"

// Validate returns every problem of the section.
func (t Trace) Validate() error {
	_, endpointErr := t.endpoint()
	_, headersErr := t.headers()
	err := errors.Join(endpointErr, headersErr)
	if !(t.Ratio >= 0 && t.Ratio <= 1) { // nor NaN
		err = errors.Join(err, errors.New("SLUICE_TRACE_RATIO must be between 0 and 1"))
	}
	return err
}

func (t Trace) endpoint() (string, error) {
	if t.Endpoint == "" {
		return "", nil
	}
	parsed, err := url.Parse(t.Endpoint)
	if err != nil || parsed.Scheme != "http" && parsed.Scheme != "https" || parsed.Host == "" || parsed.User != nil ||
		parsed.RawQuery != "" || parsed.Fragment != "" {
		return "", errors.New("SLUICE_TRACE_ENDPOINT must look like http(s)://host:4318")
	}
	if parsed.Path == "" || parsed.Path == "/" {
		parsed.Path = tracesPath
	}
	return parsed.String(), nil
}

func (t Trace) headers() (map[string]string, error) {
	headers := map[string]string{}
	if t.Headers == "" {
		return headers, nil
	}
	for pair := range strings.SplitSeq(t.Headers, ",") {
		name, value, given := strings.Cut(strings.TrimSpace(pair), "=")
		if !given || !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
			return nil, errors.New("SLUICE_TRACE_HEADERS must look like NAME=VALUE,NAME=VALUE")
		}
		headers[name] = value
	}
	return headers, nil
}

// Tracing opens the tracing of a service, such as "api". It does not wait for the collector.
func (c Common) Tracing(
	ctx context.Context, service string, log *slog.Logger, registry prometheus.Registerer,
) (*telemetry.Tracing, error) {
	endpoint, err := c.endpoint()
	if err != nil {
		return nil, err
	}
	headers, err := c.headers()
	if err != nil {
		return nil, err
	}
	client, err := c.Client()
	if err != nil {
		return nil, err
	}
	tracing, err := telemetry.OpenTracing(ctx, telemetry.TracingConfig{
		Endpoint: endpoint, Headers: headers, Ratio: c.Ratio, Client: client, Service: service, Logger: log, Registry: registry,
	})
	if err != nil {
		return nil, fmt.Errorf("SLUICE_TRACE_ENDPOINT: %w", err)
	}
	return tracing, nil
}
