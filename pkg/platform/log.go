package platform

import (
	"io"
	"log/slog"
)

// NewLogger returns the process's logger: one JSON object a line, with the service's name.
func NewLogger(w io.Writer, service string, level slog.Level) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level})).With("service", service)
}
