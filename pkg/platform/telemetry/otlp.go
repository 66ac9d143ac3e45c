package telemetry

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// otlpClient posts spans as OTLP, protobuf over HTTP. OpenTelemetry's own client links gRPC, which makes every binary 25 MB
// larger (ADR-0012).
type otlpClient struct {
	url        string
	headers    map[string]string
	client     *http.Client
	retryPause time.Duration // between attempts
	retryLimit time.Duration // a batch is dropped after this
}

func (*otlpClient) Start(context.Context) error { return nil }

func (*otlpClient) Stop(context.Context) error { return nil }

// UploadTraces implements otlptrace.Client. It retries while the collector is unreachable or returns a retryable status.
func (c *otlpClient) UploadTraces(ctx context.Context, spans []*tracev1.ResourceSpans) error {
	// TracesData and ExportTraceServiceRequest have the same encoding: both hold only the spans, as field 1.
	raw, err := proto.Marshal(&tracev1.TracesData{ResourceSpans: spans})
	if err != nil {
		return fmt.Errorf("encode spans: %w", err)
	}
	var body bytes.Buffer
	packed := gzip.NewWriter(&body)
	if _, err := packed.Write(raw); err != nil {
		return fmt.Errorf("encode spans: %w", err)
	}
	if err := packed.Close(); err != nil {
		return fmt.Errorf("encode spans: %w", err)
	}
	for began := time.Now(); ; {
		retry, err := c.post(ctx, body.Bytes())
		if err == nil || !retry || time.Since(began) > c.retryLimit {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(c.retryPause):
		}
	}
}

// post makes one attempt and reports whether a retry may succeed, according to OTLP's list of retryable statuses.
func (c *otlpClient) post(ctx context.Context, body []byte) (retry bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(body))
	if err != nil {
		return false, fmt.Errorf("post spans: %w", err)
	}
	for name, value := range c.headers {
		req.Header.Set(name, value)
	}
	req.Header.Set("Content-Type", "application/x-protobuf")
	req.Header.Set("Content-Encoding", "gzip")
	resp, err := c.client.Do(req)
	if err != nil {
		return true, fmt.Errorf("post spans: %w", err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // so that the connection is reused
	switch resp.StatusCode {
	case http.StatusOK, http.StatusAccepted, http.StatusNoContent:
		return false, nil
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		retry = true
	}
	return retry, fmt.Errorf("post spans: the collector answers %d", resp.StatusCode)
}
