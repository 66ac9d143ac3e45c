package platform

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

// otlpClient posts spans as OTLP, protobuf over HTTP. The library's own client does the same and links gRPC for it, which
// made every service larger by 25 MB.
type otlpClient struct {
	url     string
	headers map[string]string
	client  *http.Client
	again   time.Duration // between tries
	most    time.Duration // after which a batch is not tried again
}

// Start implements otlptrace.Client.
func (*otlpClient) Start(context.Context) error { return nil }

// Stop implements otlptrace.Client.
func (*otlpClient) Stop(context.Context) error { return nil }

// UploadTraces implements otlptrace.Client: for a while it tries again when the collector cannot be reached or asks for it.
func (c *otlpClient) UploadTraces(ctx context.Context, spans []*tracev1.ResourceSpans) error {
	// On the wire this is an ExportTraceServiceRequest: both hold the spans alone, as field 1.
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
		again, err := c.post(ctx, body.Bytes())
		if err == nil || !again || time.Since(began) > c.most {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(c.again):
		}
	}
}

// post is one try. It reports whether another one may succeed, which is as OTLP has it: not when the collector refuses.
func (c *otlpClient) post(ctx context.Context, body []byte) (again bool, err error) {
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
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // so that the connection can be used again
	switch resp.StatusCode {
	case http.StatusOK, http.StatusAccepted, http.StatusNoContent:
		return false, nil
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		again = true
	}
	return again, fmt.Errorf("post spans: the collector answers %d", resp.StatusCode)
}
