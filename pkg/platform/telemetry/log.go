package telemetry

import (
	"io"
	"log/slog"
)

// NewLogger returns the process's logger: one JSON object a line, with the service's name.
func NewLogger(w io.Writer, service string, level slog.Level) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level})).With("service", service)
}

// WithTrace adds the trace id of a W3C traceparent to the logger, if there is one.
func WithTrace(log *slog.Logger, parent string) *slog.Logger {
	if id := TraceID(parent); id != "" {
		return log.With("trace_id", id)
	}
	return log
}
