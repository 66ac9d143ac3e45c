package platform

import (
	"bytes"
	"context"
	"io"
	"log"
	"log/slog"
)

// NewLogger returns the process's logger: one JSON object a line, with the service's name.
func NewLogger(w io.Writer, service string, level slog.Level) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level})).With("service", service)
}

// WithTrace is the logger with the id of the trace of a W3C traceparent in each line, if there is one.
func WithTrace(log *slog.Logger, parent string) *slog.Logger {
	if id := TraceID(parent); id != "" {
		return log.With("trace_id", id)
	}
	return log
}

// serverLog is the logger that an http.Server wants, which ends in ours.
func serverLog(to *slog.Logger) *log.Logger { return log.New(serverLines{to}, "", 0) }

type serverLines struct{ to *slog.Logger }

func (s serverLines) Write(line []byte) (int, error) {
	level := slog.LevelError
	if bytes.Contains(line, []byte("TLS handshake error")) {
		level = slog.LevelDebug
	}
	s.to.Log(context.Background(), level, string(bytes.TrimSpace(line)), "part", "http")
	return len(line), nil
}
